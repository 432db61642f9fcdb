//! What happened to pods, as Events in the API: the same again counts up the one that is there.
//!
//! Events are for people and may be lost: a queue that an API server does not empty drops the newest, and an error drops the one. And
//! they may be late: they are written in measure, as a kubelet's are, so that starts of many pods have the API server for themselves.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use copepod_agent::front::NewEvent;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant as Clock;

use crate::pace::Measure;

/// As many events wait to be written as a burst of a thousand pods makes.
const QUEUE: usize = 8192;

/// A kubelet's eventRecordQPS and eventBurst.
const PER_SECOND: u32 = 50;
const AT_ONCE: u32 = 100;

/// For so long the same event counts up, as long as the API server keeps one by default.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// As many different events are remembered: a kubelet's cache.
const MOST_REMEMBERED: usize = 4096;

/// Who an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// `Pod` or `Node`.
    pub kind: &'static str,
    /// Empty for a node, whose events are in `default`.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The way in for events.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<(Subject, NewEvent)>,
}

impl Events {
    /// Starts writing events in a task of its own; `node` is who reports them.
    pub fn start(client: kube::Client, node: String) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node, queued));
        Self { queue }
    }

    /// Takes an event on its way; never waits.
    pub fn tell(&self, subject: &Subject, event: NewEvent) {
        if self.queue.try_send((subject.clone(), event)).is_err() {
            tracing::debug!(subject.name, "an event is dropped: too many wait");
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    warning: bool,
    reason: String,
    message: String,
    field_path: Option<String>,
}

struct Written {
    name: String,
    count: i32,
    last: Instant,
}

async fn write_all(
    client: kube::Client,
    node: String,
    mut queue: mpsc::Receiver<(Subject, NewEvent)>,
) {
    let mut written: HashMap<Key, Written> = HashMap::new();
    let mut measure = Measure::new(PER_SECOND, AT_ONCE);
    while let Some((subject, event)) = queue.recv().await {
        tokio::time::sleep(measure.take(Clock::now().into_std())).await;
        let namespace = if subject.namespace.is_empty() { "default" } else { &subject.namespace };
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        if written.len() >= MOST_REMEMBERED {
            written.retain(|_, it| it.last.elapsed() < REMEMBERED / 60);
        }
        let key = Key {
            subject: subject.clone(),
            warning: event.warning,
            reason: event.reason.clone(),
            message: event.message.clone(),
            field_path: event.field_path.clone(),
        };
        let known = written.get_mut(&key).filter(|it| it.last.elapsed() < REMEMBERED);
        if let Some(known) = known {
            known.count += 1;
            known.last = Instant::now();
            let patch = json!({ "count": known.count, "lastTimestamp": Time(event.at) });
            let patched =
                api.patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if patched.is_ok() {
                continue;
            }
        }
        let name = name_of(&subject, &event);
        let object = object(&subject, &event, &name, namespace, &node);
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {
                written.insert(key, Written { name, count: 1, last: Instant::now() });
            }
            Err(error) => tracing::debug!(%error, subject.name, event.reason, "an event is lost"),
        }
    }
}

/// Unique, and by its form what client-go gives: the object's name and the time in nanoseconds, in hex.
fn name_of(subject: &Subject, event: &NewEvent) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let nanos = event.at.as_nanosecond() as u128 + u128::from(number);
    format!("{}.{nanos:x}", subject.name)
}

fn object(subject: &Subject, event: &NewEvent, name: &str, namespace: &str, node: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(subject.kind.to_owned()),
            namespace: (!subject.namespace.is_empty()).then(|| subject.namespace.clone()),
            name: Some(subject.name.clone()),
            uid: Some(subject.uid.clone()),
            field_path: event.field_path.clone(),
            ..ObjectReference::default()
        },
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.clone()),
        message: Some(cut(&event.message).to_owned()),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(event.at)),
        last_timestamp: Some(Time(event.at)),
        count: Some(1),
        ..Event::default()
    }
}

/// As long as the API server lets a message be.
fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(1024)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> NewEvent {
        NewEvent {
            warning: true,
            reason: "BackOff".into(),
            message: message.into(),
            field_path: Some("spec.containers{app}".into()),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn subject() -> Subject {
        Subject { kind: "Pod", namespace: "shop".into(), name: "web".into(), uid: "u".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_reaches_the_api_server_in_measure_and_whole() {
        let (client, log) = crate::fake::api(|asked| (201, asked.body.clone()));
        let events = Events::start(client, "n1".into());
        let begin = Clock::now();
        for n in 0..AT_ONCE + 2 * PER_SECOND {
            events.tell(&subject(), event(&n.to_string()));
        }

        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!((AT_ONCE..AT_ONCE + PER_SECOND).contains(&(log.all().len() as u32)));
        while log.all().len() < (AT_ONCE + 2 * PER_SECOND) as usize {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        assert_eq!(begin.elapsed().as_secs(), 2);
    }

    #[test]
    fn two_events_of_one_moment_have_two_names() {
        assert_ne!(name_of(&subject(), &event("a")), name_of(&subject(), &event("a")));
    }

    #[test]
    fn an_event_is_about_the_container_and_its_message_is_cut_where_a_letter_ends() {
        let long = "ä".repeat(1000);

        let object = object(&subject(), &event(&long), "web.1", "shop", "n1");

        assert_eq!(object.involved_object.field_path.as_deref(), Some("spec.containers{app}"));
        assert_eq!(object.message.map(|it| it.len()), Some(1024));
        assert_eq!(object.type_.as_deref(), Some("Warning"));
    }
}
