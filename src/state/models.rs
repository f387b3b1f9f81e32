//! Which backends serve which model: looked up once for each request, by the name that its body
//! says, or by what `routing.model_mapping` makes of that.

use crate::base::fnv;
use crate::config::plan::{ModelPattern, Plan};
use std::collections::{BTreeSet, HashMap};

/// The backends that a request may go to; its number in a view. Models that the same backends serve
/// have one group, and with it one order in which these get their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId(usize);

/// Of a request that names no model: all backends.
const ANY: Choice = Choice { group: GroupId(0), rule: 0 };

impl GroupId {
    /// Its place among the groups of the view.
    pub fn place(self) -> usize {
        self.0
    }
}

/// What is known of the name of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Who serves it. It may be nobody.
    pub group: GroupId,
    /// Stands for the rule by which that was found: the same in all views that have the rule.
    pub rule: u32,
}

/// The models of a view.
#[derive(Debug)]
pub struct ModelIndex {
    /// Names that clients use, and what engines know them by.
    aliases: HashMap<Box<str>, Alias>,
    /// Anything in the configuration names a model.
    is_ruled: bool,
    exact: HashMap<Box<str>, Choice>,
    /// The beginnings that end in a `*`, in order.
    stems: Vec<Stem>,
    /// For a name that no pattern covers.
    others: Choice,
    groups: Vec<Box<[u32]>>,
}

/// What engines know a model by that clients call otherwise.
#[derive(Debug)]
pub struct Alias {
    /// The name.
    pub served: Box<str>,
    /// The same as a JSON string, quotes and escapes included.
    pub json: Box<str>,
}

impl Alias {
    fn new(served: &str) -> Alias {
        Alias { served: served.into(), json: serde_json::Value::from(served).to_string().into() }
    }
}

#[derive(Debug)]
struct Stem {
    text: Box<str>,
    choice: Choice,
    /// The place of the longest other one that this one begins with.
    parent: Option<usize>,
}

impl ModelIndex {
    /// The index of a plan.
    pub fn new(plan: &Plan) -> ModelIndex {
        let mut groups = Groups { all: Vec::new(), known: HashMap::new() };
        groups.id((0..plan.backends.len() as u32).collect());
        let patterns = || plan.backends.iter().flat_map(|backend| &backend.models);
        let serving = |covers: &dyn Fn(&ModelPattern) -> bool| -> Box<[u32]> {
            let backends = plan.backends.iter().zip(0..);
            let serves = |models: &[ModelPattern]| models.is_empty() || models.iter().any(covers);
            backends.filter(|(backend, _)| serves(&backend.models)).map(|(_, n)| n).collect()
        };
        let names = patterns().filter(|pattern| pattern.stem().is_none());
        let names: BTreeSet<&str> = names.map(ModelPattern::text).collect();
        let exact = names.into_iter().map(|name| {
            let group = groups.id(serving(&|pattern| pattern.matches(name)));
            (name.into(), Choice { group, rule: rule_of(name, false) })
        });
        let exact = exact.collect();
        let texts: BTreeSet<&str> = patterns().filter_map(ModelPattern::stem).collect();
        let mut stems: Vec<Stem> = Vec::with_capacity(texts.len());
        for text in texts {
            // Whatever begins with this one begins with each one that this one begins with.
            let covers = |pattern: &ModelPattern| {
                pattern.stem().is_some_and(|shorter| text.starts_with(shorter))
            };
            let choice = Choice { group: groups.id(serving(&covers)), rule: rule_of(text, true) };
            let parent = longest(&stems, stems.len().checked_sub(1), text);
            stems.push(Stem { text: text.into(), choice, parent });
        }
        let others = Choice { group: groups.id(serving(&|_| false)), rule: 1 };
        let mapping = &plan.routing.model_mapping;
        let pair = |(asked, served): &(String, String)| (asked.as_str().into(), Alias::new(served));
        let aliases = mapping.iter().map(pair).collect();
        let is_ruled = plan.names_models();
        ModelIndex { aliases, is_ruled, exact, stems, others, groups: groups.all }
    }

    /// Whether it matters which model a request names: anything in the configuration names one.
    pub fn is_ruled(&self) -> bool {
        self.is_ruled
    }

    /// The other name that engines know a model by, if `routing.model_mapping` has one for it. One
    /// step: what that name is itself mapped to does not matter.
    pub fn alias(&self, asked: &str) -> Option<&Alias> {
        self.aliases.get(asked)
    }

    /// Who serves a model, by the name that engines know. An empty name, which is that of a request
    /// that says none, is for everybody.
    pub fn choose(&self, served: &str) -> Choice {
        if served.is_empty() {
            return ANY;
        }
        if let Some(choice) = self.exact.get(served) {
            return *choice;
        }
        let before = self.stems.partition_point(|stem| &*stem.text <= served);
        let found = longest(&self.stems, before.checked_sub(1), served);
        found.and_then(|place| self.stems.get(place)).map_or(self.others, |stem| stem.choice)
    }

    /// Who a rule of any view leads to in this one; `None`: there is no such rule here.
    pub fn of_rule(&self, rule: u32) -> Option<GroupId> {
        let stems = self.stems.iter().map(|stem| &stem.choice);
        let mut known = [&ANY, &self.others].into_iter().chain(self.exact.values()).chain(stems);
        known.find(|choice| choice.rule == rule).map(|choice| choice.group)
    }

    /// The backends of each group, by their places in the plan.
    pub fn groups(&self) -> &[Box<[u32]>] {
        &self.groups
    }

    /// The backends of a group.
    pub fn members_of(&self, group: GroupId) -> &[u32] {
        self.groups.get(group.0).map_or(&[], |places| places)
    }
}

/// The longest of the stems up to this place that a name begins with. They are sorted, so that each
/// comes after all that it begins with itself (its parents).
fn longest(stems: &[Stem], mut from: Option<usize>, name: &str) -> Option<usize> {
    while let Some(stem) = from.and_then(|place| stems.get(place)) {
        if name.starts_with(&*stem.text) {
            break;
        }
        from = stem.parent;
    }
    from
}

struct Groups {
    all: Vec<Box<[u32]>>,
    known: HashMap<Box<[u32]>, usize>,
}

impl Groups {
    fn id(&mut self, places: Box<[u32]>) -> GroupId {
        let Groups { all, known } = self;
        let place = *known.entry(places).or_insert_with_key(|places| {
            all.push(places.clone());
            all.len() - 1
        });
        GroupId(place)
    }
}

/// A number for the rule as it is written. Should two rules have one number, they share what is
/// decided by it: whether a request that waits is called off.
fn rule_of(text: &str, is_stem: bool) -> u32 {
    let hash = fnv::hash(text.bytes().chain(is_stem.then_some(b'*')));
    ((hash ^ (hash >> 32)) as u32).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Backend;
    use proptest::prelude::*;

    fn index(models: &[Vec<String>]) -> ModelIndex {
        let mut plan = crate::config::load_text("test", "backends: []", &|_| None).unwrap().plan;
        let backend = |models: &Vec<String>| {
            let parse = |text: &String| ModelPattern::parse(text).unwrap();
            Backend { models: models.iter().map(parse).collect(), ..Backend::sample("engine") }
        };
        plan.backends = models.iter().map(backend).collect();
        plan.routing.model_mapping = vec![("gpt-4".into(), "llama".into())];
        ModelIndex::new(&plan)
    }

    /// Who serves it, by the definition.
    fn serving(models: &[Vec<String>], name: &str) -> Vec<u32> {
        let serves = |patterns: &Vec<String>| {
            let covers = |text: &String| ModelPattern::parse(text).unwrap().matches(name);
            patterns.is_empty() || name.is_empty() || patterns.iter().any(covers)
        };
        let all = models.iter().zip(0..);
        all.filter(|(patterns, _)| serves(patterns)).map(|(_, n)| n).collect()
    }

    #[test]
    fn a_name_of_a_client_is_one_of_the_engines() {
        let index = index(&[vec!["llama".into()]]);
        let served = |asked| index.alias(asked).map(|alias| (&*alias.served, &*alias.json));
        assert_eq!((served("gpt-4"), served("gpt-4o")), (Some(("llama", "\"llama\"")), None));
        let odd = Alias::new("a\"b\\c\u{1}é/d");
        assert_eq!(&*odd.json, "\"a\\\"b\\\\c\\u0001é/d\"");
        assert!(index.members_of(index.choose("gpt-4").group).is_empty());
        assert_eq!(index.members_of(index.choose("llama").group), [0]);
    }

    proptest! {
        /// Catches: a model that goes to an engine which does not have it, or is not found where it
        /// is; a group twice, which would have two orders of turns.
        #[test]
        fn whoever_covers_a_model_serves_it(
            models in prop::collection::vec(prop::collection::vec("[ab]{0,3}\\*|[ab]{1,3}", 0..4), 0..5),
            names in prop::collection::vec("[ab]{0,4}", 1..8),
        ) {
            let index = index(&models);
            for name in &names {
                let choice = index.choose(name);
                prop_assert_eq!(index.members_of(choice.group), serving(&models, name), "{}", name);
                prop_assert_eq!(index.of_rule(choice.rule), Some(choice.group));
            }
            let mut groups: Vec<_> = index.groups().to_vec();
            groups.sort();
            groups.dedup();
            prop_assert_eq!(groups.len(), index.groups().len());
        }
    }
}
