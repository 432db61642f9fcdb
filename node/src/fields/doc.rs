//! The table as a page for people.
//!
//! Absent: where the page lies; a test compares it.

use std::fmt::Write;

use super::table::{Accepts, Class, Field, SECTIONS};

const HEAD: &str = "\
<!-- Printed from node/src/fields/table.rs by `UPDATE_DOCS=1 cargo test -p copepod-node`; a test compares. -->
# Every field of a pod's spec

Types: Kubernetes v1.37. Nothing is silently ignored. A field is
- **honoured**: it does what Kubernetes says it does;
- **satisfied**: what it asks for holds by construction, or it speaks to somebody else (the scheduler);
- **refused**: a pod that sets it is not taken, with the field's path and what to write instead. An empty value
  (`false`, `0`, `\"\"`, `[]`, `{}`) is as good as none.

A line ending in `…` speaks for all fields beneath. `copepod run` refuses a field that is not in this table at all.
";

/// The page.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for section in SECTIONS {
        let roots: Vec<_> = section.roots.iter().map(|root| format!("`{root}`")).collect();
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {}\n\nBelow {}:\n\n", section.title, roots.join(", "));
        page.push_str("| field | | values and remarks |\n|---|---|---|\n");
        for field in section.fields {
            let beneath = if field.deep { ".…" } else { "" };
            let _ = writeln!(
                page,
                "| `{}{beneath}` | {} | {} |",
                field.path,
                field.class.as_str(),
                remarks(field)
            );
        }
    }
    page
}

fn remarks(field: &Field) -> String {
    let quoted = |words: &[&str]| {
        words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    };
    let values = match (field.class, field.accepts) {
        (Class::Refused, _) | (_, Accepts::Anything) => String::new(),
        (_, Accepts::OneOf(words)) => format!("only {}", quoted(words)),
        (_, Accepts::False) => "only `false`".to_owned(),
        (_, Accepts::Keys(keys)) => format!("only the keys {}", quoted(keys)),
        (_, Accepts::Items(words)) => format!("only {}", quoted(words)),
    };
    let parts = [values.as_str(), field.note];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}
