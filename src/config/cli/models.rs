//! Who serves which model, as `llmproxy check` prints it.

use crate::config::plan::{Backend, ModelPattern, Plan};

/// A line for each name and pattern of the file, with the backends that serve it and their
/// weights; empty where there are no backends yet.
pub fn table(plan: &Plan) -> String {
    if plan.backends.is_empty() {
        return String::new();
    }
    let mut rows: Vec<(String, String)> = Vec::new();
    for pattern in plan.backends.iter().flat_map(|backend| &backend.models) {
        let is_known = rows.iter().any(|(known, _)| known == pattern.text());
        if !is_known {
            let who = serving(plan, |known| covers(known, pattern));
            rows.push((pattern.text().to_owned(), who));
        }
    }
    for (asked, served) in &plan.routing.model_mapping {
        let who = serving(plan, |known| known.matches(served));
        rows.push((format!("{asked} -> {served}"), who));
    }
    let rest = if plan.names_models() { "any other model" } else { "any model" };
    rows.push((rest.to_owned(), serving(plan, |_| false)));
    if plan.names_models() {
        rows.push(("no model named".to_owned(), serving(plan, |_| true)));
    }
    let width = rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
    rows.iter().map(|(what, who)| format!("{what:width$}  {who}\n")).collect()
}

/// Whether all models of a pattern are among those of another.
fn covers(known: &ModelPattern, pattern: &ModelPattern) -> bool {
    match (known.stem(), pattern.stem()) {
        (_, None) => known.matches(pattern.text()),
        (Some(shorter), Some(stem)) => stem.starts_with(shorter),
        (None, Some(_)) => false,
    }
}

fn serving(plan: &Plan, is_covered: impl Fn(&ModelPattern) -> bool) -> String {
    let serves =
        |backend: &&Backend| backend.models.is_empty() || backend.models.iter().any(&is_covered);
    let named = |backend: &Backend| format!("{} ({})", backend.name, backend.weight);
    let all: Vec<String> = plan.backends.iter().filter(serves).map(named).collect();
    match all.is_empty() {
        true => "404 model_not_found".to_owned(),
        false => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a table that says something else than what requests find.
    #[test]
    fn each_name_has_those_who_serve_it() {
        let table =
            |text: &str| table(&crate::config::load_text("t", text, &|_| None).unwrap().plan);
        let ruled = "backends: [{name: a, weight: 3, url: 'http://a', models: ['llama*', x]}, \
                     {name: b, url: 'http://b', models: [llama-8b, 'llama-7*']}]\n\
                     routing: {model_mapping: {gpt: llama-7b, lost: y}}";
        assert_eq!(
            table(ruled),
            "llama*           a (3)\n\
             x                a (3)\n\
             llama-8b         a (3), b (1)\n\
             llama-7*         a (3), b (1)\n\
             gpt -> llama-7b  a (3), b (1)\n\
             lost -> y        404 model_not_found\n\
             any other model  404 model_not_found\n\
             no model named   a (3), b (1)\n"
        );
        let free = "backends: [{name: a, url: 'http://a'}, {name: b, url: 'http://b'}]";
        assert_eq!(table(free), "any model  a (1), b (1)\n");
        assert_eq!(table("backends: []"), "");
    }
}
