//! YAML (and so JSON) text as a tree in which everything remembers its line.
//!
//! Here: documents, anchors, merge keys, and what a plain scalar means, as Kubernetes' own YAML reader has it. Absent: any
//! knowledge of Kubernetes' types ([`super::typed`]). The text is not trusted: size, depth and alias expansion are bounded.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// The deepest nesting accepted. The deepest field of a pod lies 12 levels down.
const MAX_DEPTH: usize = 64;

/// The most values of one file, aliases counted as often as they are used: ten times what fits one frame to the agent.
const MAX_NODES: usize = 1_000_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its first line, counted from 1.
    pub(crate) line: usize,
    /// What it is.
    pub(crate) value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A single value.
    Scalar(Scalar),
    /// `[..]` or `- ..`.
    List(Vec<Node>),
    /// `{..}` or `key: ..`; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Its line.
    pub(crate) line: usize,
    /// Its text.
    pub(crate) text: String,
}

/// A single value: its text, and whether the text stands for more than itself.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    /// The text, without quotes.
    pub(crate) text: String,
    /// Quoted, a block, or tagged `!!str`: a string whatever it looks like.
    pub(crate) string: bool,
}

/// What an unquoted scalar means to Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// Nothing, `~` or `null`.
    Null,
    /// `true`, and YAML 1.1's `yes` and `on`.
    Bool(bool),
    /// A whole number; `0644` and `0o644` are octal.
    Int(i64),
    /// Another number.
    Float(f64),
    /// Itself.
    Text,
}

/// Why the text is no YAML that we take, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The line.
    pub(crate) line: usize,
    /// One sentence.
    pub(crate) message: String,
}

impl Node {
    /// The value of `key`, where this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(k, _)| k.text == key).map(|(_, node)| node)
    }

    /// The pairs of a mapping; nothing of anything else.
    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The elements of a list; nothing of anything else.
    pub(crate) fn elements(&self) -> &[Node] {
        match &self.value {
            Value::List(elements) => elements,
            _ => &[],
        }
    }

    /// The text of a string.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) if scalar.meaning() == Meaning::Text => Some(&scalar.text),
            _ => None,
        }
    }

    /// Nothing stands here.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.meaning() == Meaning::Null)
    }

    /// What stands here, for a person: `a list`, `the number 8080`.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => "nothing".into(),
                Meaning::Bool(_) => format!("the boolean {}", scalar.text),
                Meaning::Int(_) | Meaning::Float(_) => format!("the number {}", scalar.text),
                Meaning::Text => format!("the string {:?}", shortened(&scalar.text)),
            },
        }
    }
}

/// The first 40 characters, enough to find a value again.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Scalar {
    /// What it means.
    pub(crate) fn meaning(&self) -> Meaning {
        if self.string {
            return Meaning::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
                return Meaning::Bool(true);
            }
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
                return Meaning::Bool(false);
            }
            _ => {}
        }
        if let Some(number) = whole(&self.text) {
            return Meaning::Int(number);
        }
        // Rust also reads "inf", "nan" and "infinity", which are words in YAML.
        let numeric = self.text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
            && self.text.bytes().any(|b| b.is_ascii_digit());
        match self.text.parse() {
            Ok(number) if numeric => Meaning::Float(number),
            _ => Meaning::Text,
        }
    }
}

/// A whole number as YAML 1.1 and 1.2 write it.
fn whole(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        // File modes are written so: `defaultMode: 0644`.
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

/// The documents of `text` that hold something, in order.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, Malformed> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|error| {
            let message = match error.info() {
                "recursion limit exceeded" => "values are nested too deep".to_owned(),
                info if info.contains("tab") => {
                    format!("this line is not YAML: {info}; indent with spaces")
                }
                info => format!("this line is not YAML: {info}"),
            };
            Malformed { line: error.marker().line(), message }
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

/// A collection that is being read.
struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, merged: Vec<(Key, Node)>, key: Option<Key> },
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    /// What each anchor stands for, and of how many nodes it is.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Malformed> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let string = is_string(tag.as_deref(), style, line)?;
                let scalar = Scalar { text: text.into_owned(), string };
                self.place(Node { line, value: Value::Scalar(scalar) }, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => {
                self.open(Open { line, anchor, content: Content::List(Vec::new()) })
            }
            Event::MappingStart(anchor, _) => {
                let content = Content::Map { entries: Vec::new(), merged: Vec::new(), key: None };
                self.open(Open { line, anchor, content })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some((node, size)) => {
                    let (node, size) = (node, *size);
                    if self.nodes + size > MAX_NODES {
                        return Err(too_many(line));
                    }
                    let node = node.clone();
                    self.place(node, 0, size)
                }
                None => Err(Malformed {
                    line,
                    message: "this alias (*) stands inside of what it names".into(),
                }),
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, open: Open) -> Result<(), Malformed> {
        if self.open.len() == MAX_DEPTH {
            return Err(Malformed {
                line: open.line,
                message: format!("values are nested more than {MAX_DEPTH} deep"),
            });
        }
        // A mapping as the key of a mapping has no meaning in JSON, nor in Kubernetes.
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(Malformed {
                line: open.line,
                message: "a key has to be a string; is a quote missing around {{ }}?".into(),
            });
        }
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Malformed> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.content {
            Content::List(elements) => Value::List(elements),
            Content::Map { mut entries, merged, .. } => {
                // What the mapping says itself wins over what it merges in.
                for (key, node) in merged {
                    if !entries.iter().any(|(k, _)| k.text == key.text) {
                        entries.push((key, node));
                    }
                }
                Value::Map(entries)
            }
        };
        let node = Node { line: open.line, value };
        let size = if open.anchor == 0 { 1 } else { size(&node) };
        if open.anchor != 0 {
            self.anchors.insert(open.anchor, (node.clone(), size));
        }
        self.place(node, 0, 1)
    }

    /// Puts a finished node of `size` new nodes where it belongs.
    fn place(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Malformed> {
        self.nodes += size;
        if self.nodes > MAX_NODES {
            return Err(too_many(node.line));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some(Content::List(elements)) => elements.push(node),
            Some(Content::Map { entries, merged, key }) => match key.take() {
                None => *key = Some(as_key(node, entries)?),
                Some(key) if key.text == "<<" => merge(node, merged)?,
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }
}

fn too_many(line: usize) -> Malformed {
    Malformed { line, message: format!("the file holds more than {MAX_NODES} values") }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::List(elements) => elements.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| 1 + size(node)).sum(),
    }
}

fn is_string(tag: Option<&Tag>, style: ScalarStyle, line: usize) -> Result<bool, Malformed> {
    match tag {
        None => Ok(style != ScalarStyle::Plain),
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => Ok(true),
            "int" | "bool" | "float" | "null" => Ok(false),
            other => Err(Malformed { line, message: format!("the tag !!{other} is not taken") }),
        },
        Some(tag) => Err(Malformed { line, message: format!("the tag {tag} is not known") }),
    }
}

fn as_key(node: Node, before: &[(Key, Node)]) -> Result<Key, Malformed> {
    let Value::Scalar(Scalar { text, .. }) = node.value else {
        return Err(Malformed { line: node.line, message: "a key has to be a string".into() });
    };
    if let Some((first, _)) = before.iter().find(|(key, _)| key.text == text) {
        return Err(Malformed {
            line: node.line,
            message: format!("{text:?} is already given in line {}", first.line),
        });
    }
    Ok(Key { line: node.line, text })
}

fn merge(node: Node, merged: &mut Vec<(Key, Node)>) -> Result<(), Malformed> {
    match node.value {
        Value::Map(entries) => {
            for (key, node) in entries {
                if !merged.iter().any(|(k, _)| k.text == key.text) {
                    merged.push((key, node));
                }
            }
            Ok(())
        }
        Value::List(elements) => elements.into_iter().try_for_each(|node| merge(node, merged)),
        Value::Scalar(_) => {
            Err(Malformed { line: node.line, message: "<< takes a mapping".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        documents(text).expect("it is YAML").into_iter().next().expect("one document")
    }

    fn meaning(text: &str) -> Meaning {
        Scalar { text: text.into(), string: false }.meaning()
    }

    #[test]
    fn every_value_and_key_knows_its_line() {
        let node = one("a: 1\nb:\n  - x\n  - c: y\n");

        let b = node.get("b").expect("b");
        assert_eq!(node.entries()[1].0.line, 2);
        assert_eq!(b.elements()[0].line, 3);
        assert_eq!(b.elements()[1].get("c").expect("c").line, 4);
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubernetes() {
        let table = [
            ("", Meaning::Null),
            ("~", Meaning::Null),
            ("true", Meaning::Bool(true)),
            ("yes", Meaning::Bool(true)),
            ("off", Meaning::Bool(false)),
            ("n", Meaning::Text),
            ("8080", Meaning::Int(8080)),
            ("-1", Meaning::Int(-1)),
            ("0644", Meaning::Int(0o644)),
            ("0o644", Meaning::Int(0o644)),
            ("0x1f", Meaning::Int(31)),
            ("0", Meaning::Int(0)),
            ("08", Meaning::Float(8.0)),
            ("1.10", Meaning::Float(1.1)),
            ("1e3", Meaning::Float(1000.0)),
            ("1.2.3", Meaning::Text),
            ("64Mi", Meaning::Text),
            ("nan", Meaning::Text),
            ("inf", Meaning::Text),
            ("-", Meaning::Text),
            ("é", Meaning::Text),
        ];
        for (text, expected) in table {
            assert_eq!(meaning(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_quoted_scalar_is_a_string_whatever_it_looks_like() {
        let node = one("- '8080'\n- \"true\"\n- !!str 1\n- |\n  12\n- 8080\n");

        let strings: Vec<_> = node.elements().iter().map(Node::text).collect();
        assert_eq!(strings, [Some("8080"), Some("true"), Some("1"), Some("12\n"), None]);
    }

    #[test]
    fn json_is_read_too_and_tabs_in_it_do_no_harm() {
        let node = one("{\n\t\"a\": [1, {\"b\": null}],\n\t\"c\": \"\\u00e9\"\n}\n");

        assert_eq!(node.get("c").and_then(Node::text), Some("é"));
        assert!(node.get("a").expect("a").elements()[1].get("b").expect("b").is_null());
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(
            documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n").expect("YAML").len(),
            2
        );
        assert_eq!(documents("").expect("YAML").len(), 0);
    }

    #[test]
    fn anchors_aliases_and_merge_keys_work_and_own_keys_win() {
        let node = one("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\nsame: *b\n");

        let other = node.get("other").expect("other");
        assert_eq!(other.get("x").expect("x").describe(), "the number 1");
        assert_eq!(other.get("y").expect("y").describe(), "the number 3");
        assert_eq!(node.get("same").expect("same").entries().len(), 2);
    }

    #[test]
    fn a_file_that_explodes_by_its_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let below = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "));
        }

        let refused = documents(&text).expect_err("refused");

        assert!(refused.message.contains("values"), "{refused:?}");
    }

    #[test]
    fn a_file_that_is_too_deep_is_refused() {
        let blocks: String = (0..100).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();

        for text in [blocks, "[".repeat(5000)] {
            let refused = documents(&text).expect_err("refused");
            assert!(refused.message.contains("nested"), "{refused:?}");
        }
    }

    #[test]
    fn broken_text_is_refused_with_its_line() {
        let table = [
            ("a: 1\nb: [1, 2\nc: 3\n", "not YAML"),
            ("a:\n  b: 1\n\tc: 2\n", "indent with spaces"),
            ("a: 1\na: 2\n", "already given in line 1"),
            ("a: 1\nb: !binary x\n", "tag"),
            ("a: 1\nimage: {{ .Values.image }}\n", "key"),
            ("a: 1\nb: *nope\n", "not YAML"),
            ("a: 1\nb: &b [*b]\n", "alias"),
            ("a: 1\nb: {<<: 3}\n", "<<"),
        ];
        for (text, expected) in table {
            let refused = documents(text).expect_err(text);
            assert!(refused.line >= 2, "{text}: {refused:?}");
            assert!(refused.message.contains(expected), "{text}: {refused:?}");
        }
    }
}
