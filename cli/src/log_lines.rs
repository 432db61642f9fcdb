//! Log lines as they are printed: plain, with prefixes, with times, or as JSON.
//!
//! Guests' bytes pass as they are, as in kubectl. Absent: reading logs.

use std::collections::HashMap;
use std::io;

use copepod_agent::api::{LogLine, LogPiece, PodName};
use jiff::Timestamp;

use crate::out::{Colour, Format, Out};

/// The most bytes of a line that are held until its end comes.
const MAX_HELD: usize = 1 << 20;

/// Prints the logs of some containers.
pub(crate) struct Printer {
    out: Out,
    timestamps: bool,
    names: Vec<PodName>,
    /// What stands before each line of a pod's container; none where there is but one.
    prefixes: Option<HashMap<(usize, String), String>>,
    /// Lines whose end has not come, by pod, container and stream.
    held: HashMap<(usize, String, bool), Vec<u8>>,
}

impl Printer {
    /// For these pods and their containers.
    pub(crate) fn new(out: Out, pods: &[(PodName, Vec<String>)]) -> Self {
        let count: usize = pods.iter().map(|(_, containers)| containers.len()).sum();
        let is_one_namespace = pods.windows(2).all(|two| two[0].0.namespace == two[1].0.namespace);
        let mut prefixes = HashMap::new();
        for (index, (pod, containers)) in pods.iter().enumerate() {
            for container in containers {
                let PodName { namespace, name } = pod;
                let text = match is_one_namespace {
                    true => format!("[{name}/{container}]"),
                    false => format!("[{namespace}/{name}/{container}]"),
                };
                let colour = Colour::Prefix(prefixes.len());
                prefixes
                    .insert((index, container.clone()), format!("{} ", out.paint(colour, &text)));
            }
        }
        Self {
            out,
            timestamps: false,
            names: pods.iter().map(|(name, _)| name.clone()).collect(),
            prefixes: (count > 1).then_some(prefixes),
            held: HashMap::new(),
        }
    }

    /// With the time before each line.
    pub(crate) fn with_timestamps(mut self, timestamps: bool) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// Prints a piece of the log of a pod (by its place in the list) and container.
    pub(crate) fn print(
        &mut self,
        pod: usize,
        container: &str,
        piece: &LogPiece,
    ) -> io::Result<()> {
        let (stdout, stderr) = self.render(pod, container, piece);
        if !stderr.is_empty() {
            self.out.write_err(&stderr)?;
        }
        if stdout.is_empty() { Ok(()) } else { self.out.write(&stdout) }
    }

    /// What a piece puts on stdout and stderr. Lines of one piece go out together.
    fn render(&mut self, pod: usize, container: &str, piece: &LogPiece) -> (Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for line in &piece.lines {
            let to = if line.stderr && self.is_split() { &mut stderr } else { &mut stdout };
            self.append(to, pod, container, line);
        }
        (stdout, stderr)
    }

    /// A single container's stderr stays stderr; among several, all lines go one way.
    fn is_split(&self) -> bool {
        self.prefixes.is_none() && self.out.format() == Format::Text
    }

    fn append(&mut self, to: &mut Vec<u8>, pod: usize, container: &str, line: &LogLine) {
        if self.out.format() == Format::Json {
            return self.append_json(to, pod, container, line);
        }
        let key = (pod, container.to_owned(), line.stderr);
        let mut text = match self.held.remove(&key) {
            Some(begun) => begun,
            None => self.head(pod, container, line),
        };
        text.extend_from_slice(&line.text);
        match (line.partial, self.prefixes.is_some()) {
            (false, _) => text.push(b'\n'),
            // Others' lines must not stand in the middle of it.
            (true, true) if text.len() < MAX_HELD => {
                self.held.insert(key, text);
                return;
            }
            (true, true) => text.push(b'\n'),
            // Nobody else writes: the next part goes on where this stops, without a second head.
            (true, false) => {
                self.held.insert(key, Vec::new());
            }
        }
        to.extend_from_slice(&text);
    }

    /// What stands before a line.
    fn head(&self, pod: usize, container: &str, line: &LogLine) -> Vec<u8> {
        let prefixes = self.prefixes.as_ref();
        let prefix = prefixes.and_then(|it| it.get(&(pod, container.to_owned())));
        let mut head = prefix.cloned().unwrap_or_default().into_bytes();
        if self.timestamps {
            head.extend_from_slice(time(line.time_ns).as_bytes());
            head.push(b' ');
        }
        head
    }

    fn append_json(&self, to: &mut Vec<u8>, pod: usize, container: &str, line: &LogLine) {
        let name = &self.names[pod];
        let object = serde_json::json!({
            "time": time(line.time_ns),
            "namespace": name.namespace,
            "pod": name.name,
            "container": container,
            "stream": if line.stderr { "stderr" } else { "stdout" },
            "text": String::from_utf8_lossy(&line.text),
            "partial": line.partial,
        });
        to.extend_from_slice(object.to_string().as_bytes());
        to.push(b'\n');
    }
}

/// A line's time as kubectl logs --timestamps shows it.
fn time(nanoseconds: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use copepod_agent::api::LogPosition;

    use super::*;

    fn piece(lines: &[(&str, bool, bool)]) -> LogPiece {
        let line = |(text, stderr, partial): &(&str, bool, bool)| LogLine {
            time_ns: 1_795_348_800_000_000_005,
            stderr: *stderr,
            text: text.as_bytes().to_vec(),
            partial: *partial,
        };
        let position = LogPosition { attempt: 0, time_ns: 0, lines: 0 };
        LogPiece { lines: lines.iter().map(line).collect(), position }
    }

    fn printer(format: Format, pods: &[(&str, &str, &[&str])]) -> Printer {
        let pods: Vec<_> = pods
            .iter()
            .map(|(namespace, name, containers)| {
                let name = PodName { namespace: (*namespace).into(), name: (*name).into() };
                (name, containers.iter().map(|it| (*it).to_owned()).collect())
            })
            .collect();
        Printer::new(Out::new(format), &pods)
    }

    fn text(
        printer: &mut Printer,
        pod: usize,
        container: &str,
        piece: &LogPiece,
    ) -> (String, String) {
        let (stdout, stderr) = printer.render(pod, container, piece);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(stdout), text(stderr))
    }

    #[test]
    fn the_only_container_s_lines_are_plain_and_keep_their_streams() {
        let mut printer = printer(Format::Text, &[("default", "a", &["app"])]);

        let first =
            text(&mut printer, 0, "app", &piece(&[("one", false, false), ("bad", true, false)]));
        let long =
            text(&mut printer, 0, "app", &piece(&[("be", false, true), ("gun", false, false)]));

        assert_eq!(first, ("one\n".into(), "bad\n".into()));
        assert_eq!(long, ("begun\n".into(), String::new()));
    }

    #[test]
    fn lines_of_several_containers_bear_names_and_never_mix() {
        let mut printer = printer(Format::Text, &[("default", "a", &["app", "side"])]);

        let begun = text(&mut printer, 0, "app", &piece(&[("be", false, true)]));
        let other = text(&mut printer, 0, "side", &piece(&[("x", true, false)]));
        let ended = text(&mut printer, 0, "app", &piece(&[("gun", false, false)]));

        assert_eq!(begun.0, "");
        assert_eq!(other, ("[a/side] x\n".into(), String::new()));
        assert_eq!(ended.0, "[a/app] begun\n");
    }

    #[test]
    fn pods_of_several_namespaces_are_told_apart() {
        let mut printer = printer(Format::Text, &[("x", "a", &["app"]), ("y", "a", &["app"])]);

        assert_eq!(text(&mut printer, 1, "app", &piece(&[("l", false, false)])).0, "[y/a/app] l\n");
    }

    #[test]
    fn a_time_stands_once_before_each_whole_line() {
        let mut printer =
            printer(Format::Text, &[("default", "a", &["app"])]).with_timestamps(true);

        let lines = piece(&[("be", false, true), ("gun", false, false)]);

        assert_eq!(
            text(&mut printer, 0, "app", &lines).0,
            "2026-11-22T12:00:00.000000005Z begun\n"
        );
    }

    #[test]
    fn as_json_every_line_is_an_object() {
        let mut printer = printer(Format::Json, &[("default", "a", &["app"])]);

        let (stdout, stderr) = text(&mut printer, 0, "app", &piece(&[("x\u{1b}", true, false)]));

        let object: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(
            (object["stream"].as_str(), object["text"].as_str()),
            (Some("stderr"), Some("x\u{1b}"))
        );
        assert_eq!(object["container"], "app");
        assert_eq!(stderr, "");
    }
}
