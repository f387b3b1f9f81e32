//! The keys that the configuration lists, for each provider of the pipeline that has a list.

use super::board::View;
use crate::config::plan::{ApiKey, Plan, Provider, ProviderKind};
use crate::keys::table::KeyTable;
use std::sync::Arc;

/// The tables of a plan, in the order of its pipeline; `None` for a provider that has to be asked.
/// A list that is the same as in the view before keeps its table: discovery makes a view now and
/// then, and digests take their time.
pub fn of(plan: &Plan, before: Option<&View>) -> Vec<Option<Arc<KeyTable>>> {
    let table = |provider: &Provider| {
        let keys = list_of(plan, provider)?;
        let known = before.and_then(|view| known(view, keys));
        Some(known.unwrap_or_else(|| Arc::new(KeyTable::of(keys))))
    };
    plan.auth.iter().flat_map(|auth| &auth.pipeline).map(table).collect()
}

/// The table that a view has for these very keys.
fn known(view: &View, keys: &[ApiKey]) -> Option<Arc<KeyTable>> {
    let providers = view.plan.auth.iter().flat_map(|auth| &auth.pipeline);
    let mut tables = providers.zip(&view.key_tables);
    let is_same = |provider| list_of(&view.plan, provider).is_some_and(|list| list == keys);
    tables.find(|(provider, _)| is_same(provider))?.1.clone()
}

fn list_of<'a>(plan: &'a Plan, provider: &'a Provider) -> Option<&'a [ApiKey]> {
    match &provider.kind {
        ProviderKind::File => Some(&plan.api_keys),
        ProviderKind::Static { list } => Some(&list.keys),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::digest::KeyDigest;

    fn view(text: &str, before: Option<&View>) -> View {
        let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
        View::new(Arc::new(plan), Vec::new(), before)
    }

    const TWO: &str = "api_keys: [{key: a}]\nauth: {pipeline: [{type: redis}, {type: file}, \
                       {type: static, static: {keys: [{key: b}]}}]}";

    /// Catches: a table at the place of another provider, one that is made anew for nothing, and
    /// one that stays though its keys changed.
    #[test]
    fn tables_follow_their_lists() {
        let first = view(TWO, None);
        let [None, Some(file), Some(own)] = &first.key_tables[..] else { panic!() };
        assert!(file.find(&KeyDigest::of(b"a")).is_some() && own.len() == 1);
        assert!(own.find(&KeyDigest::of(b"b")).is_some());
        let second = view(&TWO.replace("{key: b}", "{key: b, status: disabled}"), Some(&first));
        assert!(Arc::ptr_eq(file, second.key_tables[1].as_ref().unwrap()));
        assert!(!Arc::ptr_eq(own, second.key_tables[2].as_ref().unwrap()));
        assert!(view("", Some(&second)).key_tables.is_empty());
    }
}
