//! From the tree to Kubernetes' types, strictly: an unknown field, a wrong type and a missing required field are errors that
//! name the field by its path and the line.
//!
//! This is a serde deserializer of our own because the types skip what they do not know, and by then the line is gone.
//! Absent: rules between fields, which the pod's core judges.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

use super::quantity::is_quantity;
use super::tree::{Key, Meaning, Node, Scalar, Value};

/// What is wrong, with which field, where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The line; 0 until it is known.
    pub(crate) line: usize,
    /// The field, as `spec.containers[0].image`.
    pub(crate) path: String,
    /// The rest of the sentence.
    pub(crate) message: String,
}

impl Fault {
    /// A fault at `line`.
    pub(crate) fn new(line: usize, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { line, path: path.into(), message: message.into() }
    }

    fn at(mut self, line: usize, path: &Path<'_>) -> Self {
        if self.line == 0 {
            self.line = line;
            self.path = path.to_string();
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { line: 0, path: String::new(), message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {found}"))
    }
}

/// Reads `node` as a `T`.
pub(crate) fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Fault> {
    let root = Path::Root;
    let reader = Reader { node, line: node.line, path: &root, siblings: None };
    T::deserialize(reader).map_err(|fault| fault.at(node.line, &root))
}

/// Where we are, back to the root.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => {
                let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                match (plain, parent) {
                    (true, Path::Root) => f.write_str(key),
                    (true, _) => write!(f, "{parent}.{key}"),
                    (false, _) => write!(f, "{parent}[{key:?}]"),
                }
            }
        }
    }
}

/// Fields without which a thing has no meaning, by the name of its type. The types themselves take the default instead.
fn required(of: &str) -> &'static [&'static str] {
    match of {
        "Pod"
        | "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
        | "ReplicationController" => &["metadata", "spec"],
        "ConfigMap" | "Secret" => &["metadata"],
        "DeploymentSpec"
        | "ReplicaSetSpec"
        | "StatefulSetSpec"
        | "DaemonSetSpec"
        | "JobSpec"
        | "ReplicationControllerSpec" => &["template"],
        "CronJobSpec" => &["jobTemplate"],
        "JobTemplateSpec" | "PodTemplateSpec" => &["spec"],
        "PodSpec" => &["containers"],
        "Container" => &["name", "image"],
        "ContainerPort" => &["containerPort"],
        "EnvVar" | "Volume" => &["name"],
        "VolumeMount" => &["name", "mountPath"],
        "ConfigMapKeySelector" | "SecretKeySelector" => &["key", "name"],
        "ConfigMapEnvSource" | "SecretEnvSource" | "ConfigMapVolumeSource" => &["name"],
        "SecretVolumeSource" => &["secretName"],
        "KeyToPath" => &["key", "path"],
        "HostPathVolumeSource" => &["path"],
        "ObjectFieldSelector" => &["fieldPath"],
        "ResourceFieldSelector" => &["resource"],
        "HTTPGetAction" | "TCPSocketAction" | "GRPCAction" => &["port"],
        "ExecAction" => &["command"],
        _ => &[],
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    /// The line to name: the key's, where the value stands further down.
    line: usize,
    path: &'a Path<'a>,
    /// The fields among which this one stands, where it is a field of a type.
    siblings: Option<&'static [&'static str]>,
}

impl Reader<'_> {
    fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.line, self.path.to_string(), message)
    }

    fn expected(&self, what: &str) -> Fault {
        self.fault(format!("expected {what}, found {}", self.node.describe()))
    }

    fn scalar(&self, what: &str) -> Result<&Scalar, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) => Ok(scalar),
            _ => Err(self.expected(what)),
        }
    }

    fn string(&self) -> Result<&str, Fault> {
        let scalar = self.scalar("a string")?;
        match scalar.meaning() {
            Meaning::Text => Ok(&scalar.text),
            Meaning::Null => Err(self.expected("a string")),
            _ => {
                let found = self.node.describe();
                let quoted = &scalar.text;
                Err(self.fault(format!(
                    "expected a string, found {found}; write it in quotes: \"{quoted}\""
                )))
            }
        }
    }

    fn int(&self) -> Result<i64, Fault> {
        match self.scalar("a whole number")?.meaning() {
            Meaning::Int(number) => Ok(number),
            Meaning::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
                // JSON writers may say 8080.0 or 1e3; the check above makes the cast exact.
                Ok(number as i64)
            }
            _ => Err(self.expected("a whole number")),
        }
    }

    fn unknown_field(&self) -> Option<Fault> {
        let (siblings, Path::Key(_, key)) = (self.siblings?, self.path) else { return None };
        let guess = closest(key, siblings);
        Some(self.fault(match guess {
            Some(guess) => format!("unknown field; did you mean {guess}?"),
            None => "unknown field".to_owned(),
        }))
    }
}

/// The known name that `word` most resembles, if any does.
pub(crate) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = word.to_lowercase();
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), *known))
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 4) && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number = self.int()?;
            let number = <$type>::try_from(number).map_err(|_| {
                let (least, most) = (<$type>::MIN, <$type>::MAX);
                self.fault(format!("{number} is out of range: {least} to {most}"))
            })?;
            visitor.$visit(number)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => visitor.visit_unit(),
                Meaning::Bool(value) => visitor.visit_bool(value),
                Meaning::Int(value) => visitor.visit_i64(value),
                Meaning::Float(value) => visitor.visit_f64(value),
                Meaning::Text => visitor.visit_str(&scalar.text),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.scalar("true or false")?.meaning() {
            Meaning::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.expected("true or false")),
        }
    }

    integers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.scalar("a number")?.meaning() {
            // A whole number of JSON is a number all the same; those beyond 2^53 lose digits, as in every JSON reader.
            Meaning::Int(value) => visitor.visit_f64(value as f64),
            Meaning::Float(value) => visitor.visit_f64(value),
            _ => Err(self.expected("a number")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.string()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.string()?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_bytes(self.string()?.as_bytes())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name != "Quantity" {
            return visitor.visit_newtype_struct(self);
        }
        // `cpu: 1` and `cpu: 0.5` are quantities as they are written, not as numbers print.
        let scalar = self.scalar("a quantity")?;
        if scalar.meaning() == Meaning::Null {
            return Err(self.expected("a quantity"));
        }
        if !is_quantity(&scalar.text) {
            let text = &scalar.text;
            return Err(self.fault(format!(
                "{text:?} is no quantity; write a number with a suffix, like 500m, 2, 64Mi or 1G"
            )));
        }
        visitor.visit_str(&scalar.text)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(elements) => {
                visitor.visit_seq(Elements { elements, next: 0, path: self.path })
            }
            _ => Err(self.expected("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Map(entries) => {
                visitor.visit_map(Entries { entries, next: 0, path: self.path, fields: None })
            }
            _ => Err(self.expected("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.expected("a mapping"));
        };
        let fields = Some(fields);
        let value = visitor.visit_map(Entries { entries, next: 0, path: self.path, fields })?;
        // After the fields: a misspelt field explains a missing one, and comes first.
        for field in required(name) {
            if self.node.get(field).is_none_or(Node::is_null) {
                return Err(self.fault(format!("{field} is missing")));
            }
        }
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(self.string()?.into_deserializer())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    /// The types ask for this exactly where they do not know the field.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.unknown_field() {
            Some(fault) => Err(fault),
            None => visitor.visit_unit(),
        }
    }
}

struct Elements<'a> {
    elements: &'a [Node],
    next: usize,
    path: &'a Path<'a>,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.elements.get(self.next) else { return Ok(None) };
        let path = Path::Index(self.path, self.next);
        self.next += 1;
        let reader = Reader { node, line: node.line, path: &path, siblings: None };
        seed.deserialize(reader).map(Some).map_err(|fault| fault.at(node.line, &path))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len() - self.next)
    }
}

struct Entries<'a> {
    entries: &'a [(Key, Node)],
    next: usize,
    path: &'a Path<'a>,
    fields: Option<&'static [&'static str]>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        let path = Path::Key(self.path, &key.text);
        let reader: StrDeserializer<'_, Fault> = key.text.as_str().into_deserializer();
        seed.deserialize(reader).map(Some).map_err(|fault| fault.at(key.line, &path))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = &self.entries[self.next];
        self.next += 1;
        let path = Path::Key(self.path, &key.text);
        let reader = Reader { node, line: key.line, path: &path, siblings: self.fields };
        seed.deserialize(reader).map_err(|fault| fault.at(key.line, &path))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::super::tree::documents;
    use super::*;

    fn pod(text: &str) -> Result<Pod, Fault> {
        read(&documents(text).expect("it is YAML")[0])
    }

    const HEAD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n";

    #[test]
    fn a_whole_pod_is_read() {
        let text = format!(
            "{HEAD}  - name: app\n    image: x/y:1\n    command: [\"a\", \"8080\"]\n    env: [{{name: A, value: \"1\"}}]\n    \
             ports: [{{containerPort: 8080}}]\n    resources: {{limits: {{cpu: 1, memory: 64Mi}}, requests: {{cpu: 0.5}}}}\n    \
             livenessProbe: {{httpGet: {{port: http}}, periodSeconds: 3}}\n  volumes:\n  - name: v\n    configMap: {{name: c, defaultMode: 0644}}\n  \
             restartPolicy: Never\n  nodeSelector:\n"
        );

        let pod = pod(&text).expect("it is a pod");

        let spec = pod.spec.expect("a spec");
        let resources = spec.containers[0].resources.as_ref().expect("resources");
        let limits = resources.limits.as_ref().expect("limits");
        assert_eq!(limits["cpu"].0, "1");
        assert_eq!(resources.requests.as_ref().expect("requests")["cpu"].0, "0.5");
        let volume = &spec.volumes.as_ref().expect("volumes")[0];
        assert_eq!(volume.config_map.as_ref().expect("one").default_mode, Some(0o644));
        assert_eq!(spec.node_selector, None);
    }

    #[test]
    fn what_is_wrong_is_named_by_line_field_and_remedy() {
        let table = [
            (
                "  - name: app\n    image: x\n    comand: [a]\n",
                8,
                "spec.containers[0].comand: unknown field; did you mean command?",
            ),
            ("  - name: app\n    image: x\n    zzzzzz: 1\n", 8, "zzzzzz: unknown field"),
            (
                "  - name: app\n    image: x\n    ports:\n    - containerPort: \"80\"\n",
                9,
                "spec.containers[0].ports[0].containerPort: expected a whole number, found the string \"80\"",
            ),
            (
                "  - name: app\n    image: x\n    ports:\n    - containerPort: 3000000000\n",
                9,
                "out of range",
            ),
            (
                "  - name: app\n    image: x\n    env:\n    - name: A\n      value: 8080\n",
                10,
                "spec.containers[0].env[0].value: expected a string, found the number 8080; write it in quotes: \"8080\"",
            ),
            (
                "  - name: app\n    image: x\n    env:\n    - {name: A, value: yes}\n",
                9,
                "found the boolean yes; write it in quotes",
            ),
            (
                "  - name: app\n    image: x\n    command: a b\n",
                8,
                "spec.containers[0].command: expected a list, found the string \"a b\"",
            ),
            ("  - image: x\n", 6, "spec.containers[0]: name is missing"),
            ("  - name: app\n", 6, "spec.containers[0]: image is missing"),
            (
                "  - name: app\n    image: x\n    resources:\n      limits:\n        memory: 64 MB\n",
                10,
                "spec.containers[0].resources.limits.memory: \"64 MB\" is no quantity",
            ),
            (
                "  - name: app\n    image: x\n    volumeMounts:\n    - name: v\n",
                9,
                "spec.containers[0].volumeMounts[0]: mountPath is missing",
            ),
            ("  - name: app\n    image: x\n    tty: maybe\n", 8, "expected true or false"),
            ("  - name: app\n    image:\n", 6, "image is missing"),
            ("  - just a string\n", 6, "spec.containers[0]: expected a mapping"),
        ];
        for (body, line, expected) in table {
            let fault = pod(&format!("{HEAD}{body}")).expect_err(body);
            assert_eq!(fault.line, line, "{body}: {fault}");
            assert!(fault.to_string().contains(expected), "{body}: {fault}");
        }
    }

    #[test]
    fn a_label_that_is_no_string_is_named_with_its_odd_key() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    app.kubernetes.io/version: 1.10\n";

        let fault = pod(text).expect_err("refused");

        assert_eq!(fault.line, 5);
        assert!(
            fault.to_string().starts_with("metadata.labels[\"app.kubernetes.io/version\"]: "),
            "{fault}"
        );
    }

    #[test]
    fn a_misspelt_field_is_told_before_the_field_that_it_leaves_missing() {
        let fault = pod("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  container: []\n")
            .expect_err("refused");

        assert_eq!(fault.to_string(), "spec.container: unknown field; did you mean containers?");
    }
}
