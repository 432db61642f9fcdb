//! What becomes of every field of a pod's spec: honoured, satisfied by construction, or refused. Nothing is silently ignored.
//!
//! Start at [`table`], which is the truth; `docs/pod-fields.md` is printed from it, and a test holds it against the types.
//! Absent: whether a value makes sense (`validate`), fields that the types do not know (whoever reads the manifest), and
//! metadata but for our annotations (`annotations`).

mod doc;
mod table;

use std::{collections::HashMap, sync::LazyLock};

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

pub use self::{
    doc::markdown,
    table::{Accepts, Class, Field, SECTIONS, Section},
};
use crate::refusal::Refusal;

/// Every field by its pattern: `spec.containers[].image`.
static BY_PATTERN: LazyLock<HashMap<String, &'static Field>> = LazyLock::new(|| {
    let mut by_pattern = HashMap::new();
    for section in SECTIONS {
        for root in section.roots {
            for field in section.fields {
                by_pattern.insert(format!("{root}.{}", field.path), field);
            }
        }
    }
    by_pattern
});

/// All that this version refuses in the pod's spec, each with its path.
pub fn check(pod: &Pod) -> Vec<Refusal> {
    let mut wrong = Vec::new();
    // Serialising our own types into a tree of values fails for no pod: their maps have text for keys.
    if let Some(Ok(spec)) = pod.spec.as_ref().map(serde_json::to_value) {
        walk(&spec, "spec", "spec", &mut wrong);
    }
    wrong
}

/// The field of this pattern, or the one above it that speaks for all beneath.
pub fn lookup(pattern: &str) -> Option<&'static Field> {
    if let Some(field) = BY_PATTERN.get(pattern) {
        return Some(field);
    }
    let above = pattern.match_indices(['.', '[']).map(|(i, _)| &pattern[..i]);
    above.filter_map(|above| BY_PATTERN.get(above).copied()).find(|field| field.speaks_for_all())
}

fn walk(value: &Value, pattern: &str, path: &str, wrong: &mut Vec<Refusal>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let pattern = format!("{pattern}.{key}");
                let path = format!("{path}.{key}");
                let Some(field) = BY_PATTERN.get(&pattern) else {
                    wrong.push(Refusal::new(path, "this version does not know the field"));
                    continue;
                };
                judge(field, value, &path, wrong);
                if !field.speaks_for_all() {
                    walk(value, &pattern, &path, wrong);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(item, &format!("{pattern}[]"), &format!("{path}[{i}]"), wrong);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn judge(field: &Field, value: &Value, path: &str, wrong: &mut Vec<Refusal>) {
    if is_zero(value) {
        return;
    }
    let note = field.note;
    let accepted = match (field.class, field.accepts) {
        (Class::Refused, _) => false,
        (_, Accepts::Anything) => true,
        (_, Accepts::OneOf(words)) => value.as_str().is_some_and(|word| words.contains(&word)),
        (_, Accepts::False) => false,
        (_, Accepts::Keys(keys)) => {
            for key in value.as_object().into_iter().flat_map(serde_json::Map::keys) {
                if !keys.contains(&key.as_str()) {
                    let message = format!("only {} here; {note}", keys.join(", "));
                    wrong.push(Refusal::new(format!("{path}[{key}]"), message));
                }
            }
            return;
        }
        (_, Accepts::Items(words)) => {
            let items = value.as_array().into_iter().flatten().enumerate();
            for (i, item) in items {
                if !item.as_str().is_some_and(|word| words.contains(&word)) {
                    let message = format!("{item} is not available; {note}");
                    wrong.push(Refusal::new(format!("{path}[{i}]"), message));
                }
            }
            return;
        }
    };
    if accepted {
        return;
    }
    let message = match field.accepts {
        Accepts::OneOf(words) if field.class != Class::Refused => {
            format!("{value} is not available; write {}: {note}", words.join(" or "))
        }
        _ => note.to_owned(),
    };
    wrong.push(Refusal::new(path, message));
}

/// A value that says no more than leaving the field out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests;
