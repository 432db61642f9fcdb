//! What the API server was asked, by whom, and what it answered: its audit log.
//!
//! Absent: bodies; the cluster's policy has each request's metadata written down.

use std::path::Path;

use serde_json::Value;

/// One request to its end, as `audit.k8s.io/v1` tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(pub Value);

impl Event {
    /// Who asked.
    pub fn user(&self) -> &str {
        self.0["user"]["username"].as_str().unwrap_or_default()
    }

    /// What for, such as `create`.
    pub fn verb(&self) -> &str {
        self.0["verb"].as_str().unwrap_or_default()
    }

    /// The resource, such as `nodes` or `pods/status`.
    pub fn resource(&self) -> String {
        let part = |name: &str| self.0["objectRef"][name].as_str().unwrap_or_default();
        match part("subresource") {
            "" => part("resource").to_owned(),
            beneath => format!("{}/{beneath}", part("resource")),
        }
    }

    /// The object's name, where the path has one.
    pub fn name(&self) -> &str {
        self.0["objectRef"]["name"].as_str().unwrap_or_default()
    }

    /// The status code of the answer.
    pub fn code(&self) -> u64 {
        self.0["responseStatus"]["code"].as_u64().unwrap_or_default()
    }
}

/// All whole lines of an audit log so far.
pub(super) fn read(log: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| serde_json::from_str(line).ok().map(Event)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_events_and_the_beginning_of_one_is_not_yet() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("audit.log");
        let line = r#"{"user":{"username":"system:node:n1"},"verb":"patch","objectRef":{"resource":"nodes","subresource":"status","name":"n2"},"responseStatus":{"code":403}}"#;
        std::fs::write(&log, format!("{line}\n{}", &line[..20])).expect("written");

        let events = read(&log);

        let [event] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!((event.user(), event.verb()), ("system:node:n1", "patch"));
        assert_eq!((event.resource(), event.name()), ("nodes/status".to_owned(), "n2"));
        assert_eq!(event.code(), 403);
        assert_eq!(read(&folder.path().join("none")), []);
    }
}
