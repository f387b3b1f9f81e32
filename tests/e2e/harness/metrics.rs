//! The metrics page, read as a scraper reads it.

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the series.
    pub name: String,
    /// Labels in their order.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

/// A page.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// As it was served.
    pub text: String,
    /// Its samples.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads a page in the text format. Panics on a line that is none.
    pub fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics { text: text.to_owned(), samples: lines.map(sample).collect() }
    }

    /// The sum of all series of this name that have these labels (and perhaps more); 0 when there
    /// is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(k, v)| sample.labels.iter().any(|(name, value)| name == k && value == v))
        };
        self.samples.iter().filter(fits).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
    let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, rest)) => {
            let inner = rest.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}"));
            (name, inner.split("\",").filter(|l| !l.is_empty()).map(label).collect())
        }
    };
    Sample { name: name.to_owned(), labels, value }
}

/// `name="value` with or without the closing quote. No label of the product holds a quote.
fn label(text: &str) -> (String, String) {
    let (name, value) = text.split_once("=\"").unwrap_or_else(|| panic!("{text:?}"));
    (name.trim_start_matches(',').to_owned(), value.trim_end_matches('"').to_owned())
}
