//! The metrics page of a gateway, read for the figures that are shown.

use std::collections::BTreeMap;

/// A line of it.
#[derive(Debug, PartialEq)]
struct PageSample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// All of it.
#[derive(Debug, Default)]
pub struct MetricsPage(Vec<PageSample>);

/// TimeBuckets of a histogram: upper bounds in microseconds, and how much is at or below each.
pub type TimeBuckets = BTreeMap<u64, f64>;

/// The bound of what has none.
pub const UNBOUNDED: u64 = u64::MAX;

impl MetricsPage {
    /// Reads it. A line that is none is passed over: what is new to us must not spoil the rest.
    pub fn read(text: &str) -> MetricsPage {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        MetricsPage(lines.filter_map(sample).collect())
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a PageSample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The sum of all series with this name.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|sample| sample.value).sum()
    }

    /// The sums of the series with this name, by a label.
    pub fn by<'a>(&'a self, name: &'a str, label: &str) -> BTreeMap<&'a str, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.named(name) {
            *sums.entry(sample.label(label).unwrap_or_default()).or_default() += sample.value;
        }
        sums
    }

    /// The largest value of a series with this name; 0 where there is none.
    pub fn largest(&self, name: &str) -> f64 {
        self.named(name).map(|sample| sample.value).fold(0.0, f64::max)
    }

    /// The buckets of one or more histograms, which are added up. `unit_us`: microseconds of their
    /// unit. `of`: only those with this label.
    pub fn buckets(&self, name: &str, unit_us: f64, of: Option<(&str, &str)>) -> TimeBuckets {
        let mut buckets = TimeBuckets::new();
        let fits = |sample: &&PageSample| of.is_none_or(|(k, v)| sample.label(k) == Some(v));
        for sample in self.named(name).filter(fits) {
            let bound = match sample.label("le") {
                Some("+Inf") => UNBOUNDED,
                Some(bound) => match bound.parse::<f64>() {
                    Ok(bound) => (bound * unit_us).round() as u64,
                    Err(_) => continue,
                },
                None => continue,
            };
            *buckets.entry(bound).or_default() += sample.value;
        }
        buckets
    }
}

impl PageSample {
    fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// `name{label="value",…} value`, or without labels.
fn sample(line: &str) -> Option<PageSample> {
    let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse::<f64>().ok()?;
    let is_figure = value.is_finite();
    is_figure.then(|| PageSample { name: name.to_owned(), labels, value })
}

/// Labels up to their `}`, and what is behind it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, behind) = unquoted(quoted)?;
        labels.push((name.to_owned(), value));
        rest = behind;
    }
}

/// A value up to its quote, and what is behind that.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Catches: a figure of another name or label, a name that ends where it has a quote, a line
    /// that spoils those behind it.
    #[test]
    fn figures_are_found_by_name_and_label() {
        let page = MetricsPage::read(
            "# HELP a b\n# TYPE a counter\na_total{k=\"x\",l=\"1\"} 2\na_total{k=\"x\",l=\"2\"} 3\n\
             a_total{k=\"y, \\\"}\\\\ \\n\"} 5\na_total_more{k=\"x\"} 7\nno number\n{\nb 1.5e1 99\n\
             c{k=\"open} 1\nd NaN\n",
        );
        assert_eq!((page.sum("a_total"), page.sum("b"), page.sum("c")), (10.0, 15.0, 0.0));
        let by = page.by("a_total", "k");
        assert_eq!(by.get("x"), Some(&5.0));
        assert_eq!(by.get("y, \"}\\ \n"), Some(&5.0));
        assert_eq!((page.largest("a_total"), page.largest("none")), (5.0, 0.0));
    }

    /// Catches: buckets of another backend, or of another unit.
    #[test]
    fn histograms_are_added_up() {
        let page = MetricsPage::read(
            "t_bucket{le=\"10.0\",b=\"x\"} 1\nt_bucket{le=\"+Inf\",b=\"x\"} 3\n\
             t_bucket{le=\"10.0\",b=\"y\"} 4\nt_bucket{le=\"+Inf\",b=\"y\"} 4\n\
             t_bucket{le=\"odd\"} 9\nt_bucket 9\ns_bucket{le=\"0.01\"} 1\n",
        );
        let all = page.buckets("t_bucket", 1e3, None);
        assert_eq!(all, [(10_000, 5.0), (UNBOUNDED, 7.0)].into());
        let one = page.buckets("t_bucket", 1e3, Some(("b", "x")));
        assert_eq!(one, [(10_000, 1.0), (UNBOUNDED, 3.0)].into());
        assert_eq!(page.buckets("s_bucket", 1e6, None), [(10_000, 1.0)].into());
    }

    proptest! {
        #[test]
        fn no_text_brings_it_down(text in "[a{}=\",\\\\ 1.\n\u{e9}]{0,80}") {
            MetricsPage::read(&text);
        }
    }
}
