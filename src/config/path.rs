//! Where in a configuration something stands, as its author would say it.

use std::fmt;
use std::rc::Rc;

/// A dotted key path such as `backends[1].weight`. Cheap to clone: parents are shared.
#[derive(Clone)]
pub struct Path(Option<Rc<Crumb>>);

struct Crumb {
    parent: Path,
    step: Step,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// The path of the whole document.
    pub fn root() -> Path {
        Path(None)
    }
    /// The path of an entry of the mapping at this path.
    pub fn key(&self, key: &str) -> Path {
        Path(Some(Rc::new(Crumb { parent: self.clone(), step: Step::Key(key.to_owned()) })))
    }
    /// The path of an item of the sequence at this path.
    pub fn index(&self, index: usize) -> Path {
        Path(Some(Rc::new(Crumb { parent: self.clone(), step: Step::Index(index) })))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(crumb) = &self.0 else { return Ok(()) };
        crumb.parent.fmt(f)?;
        match &crumb.step {
            Step::Index(i) => write!(f, "[{i}]"),
            // A model name such as `qwen-2.5` must not look like two keys.
            Step::Key(key) if key.is_empty() || key.contains(['.', '[', ' ', '\n']) => {
                write!(f, "[{key:?}]")
            }
            Step::Key(key) if crumb.parent.0.is_none() => f.write_str(key),
            Step::Key(key) => write!(f, ".{key}"),
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_one_would_say_it() {
        let path = Path::root().key("backends").index(1).key("headers").key("X-Id");
        assert_eq!(path.to_string(), "backends[1].headers.X-Id");
        let mapping = Path::root().key("routing").key("model_mapping");
        assert_eq!(mapping.key("qwen-2.5").to_string(), "routing.model_mapping[\"qwen-2.5\"]");
        assert_eq!(Path::root().key("a\nb").to_string(), "[\"a\\nb\"]");
        assert_eq!(Path::root().to_string(), "");
    }
}
