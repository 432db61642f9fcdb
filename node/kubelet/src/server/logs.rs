//! `/containerLogs`: which run's log, how much of it, and how it is shown.
//!
//! Absent: reading logs, which the agent does beneath the pod's own folder.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use copepod_agent::api::LogLine;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::answer::{self, Answer};
use super::follower::{Begin, Follower, Run};
use super::pods::{Pods, container_names, status_of};
use super::route::{Query, Target};

/// What the query asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    since_ns: Option<i64>,
    tail: Option<u64>,
    limit: Option<u64>,
    stream: Which,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Which {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Why a query is refused, in the kubelet's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Unreadable,
    Invalid,
}

/// Answers `/containerLogs`.
pub(crate) async fn answer(pods: &Arc<dyn Pods>, target: &Target, query: &Query) -> Answer {
    let options = match options(query, Timestamp::now()) {
        Ok(options) => options,
        Err(Refused::Unreadable) => {
            let text = r#"{"message": "Unable to decode query."}"#;
            return answer::text(StatusCode::BAD_REQUEST, text);
        }
        Err(Refused::Invalid) => {
            let text = r#"{"message": "Invalid request."}"#;
            return answer::text(StatusCode::UNPROCESSABLE_ENTITY, text);
        }
    };
    let (name, container) = (&target.pod.name, &target.container);
    let Some(pod) = pods.find(&target.pod) else {
        return answer::text(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist"));
    };
    if !container_names(&pod).any(|known| known == container) {
        let text = format!("container {container:?} not found in pod {name:?}");
        return answer::text(StatusCode::NOT_FOUND, text);
    }
    let attempt = match choose(&pod, container, options.previous) {
        Ok(attempt) => attempt,
        Err(why) => return answer::text(StatusCode::BAD_REQUEST, why),
    };
    let run = Run {
        pod: target.pod.clone(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        container: container.clone(),
        attempt,
    };
    let from = match options.tail {
        Some(0) if options.follow => Begin::Time(now_ns()),
        tail => Begin::Start { tail },
    };
    let mut follower = Follower::new(pods.clone(), run, from, options.follow).await;
    let mut shown = Shown::new(options);
    // The head of a followed log goes out at once; of another one the first lines are waited for, so that a failure has a status.
    let first = if shown.options.follow {
        Bytes::new()
    } else {
        match follower.next().await {
            Ok(lines) => match shown.show(&lines.unwrap_or_default()) {
                Some(bytes) => bytes,
                None => return answer::whole(StatusCode::OK, PLAIN, shown.last()),
            },
            Err(why) => return answer::text(StatusCode::BAD_REQUEST, why),
        }
    };
    let pieces = futures::stream::unfold(Some((follower, shown, first)), async |state| {
        let (mut follower, mut shown, ready) = state?;
        if !ready.is_empty() {
            return Some((ready, Some((follower, shown, Bytes::new()))));
        }
        loop {
            // A failure in the middle can only end it: the status is long sent.
            let lines = follower.next().await.ok().flatten()?;
            match shown.show(&lines) {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => return Some((bytes, Some((follower, shown, Bytes::new())))),
                None => return Some((shown.last(), None)),
            }
        }
    });
    answer::stream(PLAIN, pieces)
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// The Unix time in nanoseconds.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn options(query: &Query, now: Timestamp) -> Result<Options, Refused> {
    let flag = |key: &str| query.first(key).is_some_and(|it| !it.eq_ignore_ascii_case("false"));
    let number = |key: &str| {
        query.first(key).map(|it| it.parse::<i64>().map_err(|_| Refused::Unreadable)).transpose()
    };
    let tail = match query.first("tail").filter(|tail| !tail.is_empty()) {
        Some("all") => None,
        Some(tail) => Some(tail.parse::<i64>().map_err(|_| Refused::Unreadable)?),
        None => number("tailLines")?,
    };
    let limit = number("limitBytes")?;
    let since_seconds = number("sinceSeconds")?;
    let since_time = match query.first("sinceTime").filter(|time| !time.is_empty()) {
        Some(time) => Some(time.parse::<Timestamp>().map_err(|_| Refused::Unreadable)?),
        None => None,
    };
    let stream = match query.first("stream") {
        None | Some("All") => Which::All,
        Some("Stdout") => Which::Stdout,
        Some("Stderr") => Which::Stderr,
        Some(_) => return Err(Refused::Invalid),
    };
    let is_invalid = tail.is_some_and(|tail| tail < 0)
        || limit.is_some_and(|limit| limit < 1)
        || since_seconds.is_some_and(|seconds| seconds < 1)
        || since_seconds.is_some() && since_time.is_some()
        || stream != Which::All && tail.is_some();
    if is_invalid {
        return Err(Refused::Invalid);
    }
    let since = since_time.map(Timestamp::as_nanosecond).or_else(|| {
        since_seconds.map(|seconds| now.as_nanosecond() - i128::from(seconds) * 1_000_000_000)
    });
    Ok(Options {
        follow: flag("follow"),
        previous: flag("previous"),
        timestamps: flag("timestamps"),
        since_ns: since
            .map(|ns| i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })),
        tail: tail.and_then(|tail| u64::try_from(tail).ok()),
        limit: limit.and_then(|limit| u64::try_from(limit).ok()),
        stream,
    })
}

/// Which run of a container a log is asked of, by the container's status; else the kubelet's sentence.
pub(crate) fn choose(pod: &Pod, container: &str, previous: bool) -> Result<u32, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = status_of(pod, container)
        .ok_or_else(|| format!("container {container:?} in pod {name:?} is not available"))?;
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_attempt = last.and_then(|last| attempt_of(last.container_id.as_deref()));
    let is_over = || format!("container {container:?} in pod {name:?} is terminated");
    if previous {
        return last_attempt.ok_or_else(|| {
            format!("previous terminated container {container:?} in pod {name:?} not found")
        });
    }
    if state.running.is_some() {
        return attempt_of(status.container_id.as_deref()).ok_or_else(is_over);
    }
    if let Some(terminated) = &state.terminated {
        let attempt = attempt_of(terminated.container_id.as_deref());
        return attempt.or(last_attempt).ok_or_else(is_over);
    }
    if last.is_some() {
        return last_attempt.ok_or_else(is_over);
    }
    let why = match state.waiting.map(|waiting| waiting.reason.unwrap_or_default()) {
        Some(reason) if reason == "ErrImagePull" => ": image can't be pulled".to_owned(),
        Some(reason) if reason == "ImagePullBackOff" => {
            ": trying and failing to pull image".to_owned()
        }
        Some(reason) => format!(": {reason}"),
        None => " - no logs yet".to_owned(),
    };
    Err(format!("container {container:?} in pod {name:?} is waiting to start{why}"))
}

/// The attempt in a container's id, `copepod://<pod UID>/<container>/<attempt>`.
pub(crate) fn attempt_of(id: Option<&str>) -> Option<u32> {
    id?.strip_prefix("copepod://")?.rsplit_once('/')?.1.parse().ok()
}

/// Shows lines as asked.
struct Shown {
    options: Options,
    left: u64,
    in_line: bool,
    last: Bytes,
}

impl Shown {
    fn new(options: Options) -> Self {
        let left = options.limit.unwrap_or(u64::MAX);
        Self { options, left, in_line: false, last: Bytes::new() }
    }

    /// What to send for these lines; `None` once no more may be sent, and [`Shown::last`] is the rest.
    fn show(&mut self, lines: &[LogLine]) -> Option<Bytes> {
        let mut text = BytesMut::new();
        for line in lines {
            let is_wanted = match self.options.stream {
                Which::All => true,
                Which::Stdout => !line.stderr,
                Which::Stderr => line.stderr,
            };
            if !is_wanted || self.options.since_ns.is_some_and(|since| line.time_ns < since) {
                continue;
            }
            if self.options.timestamps && !self.in_line {
                let time = Timestamp::from_nanosecond(line.time_ns.into()).unwrap_or_default();
                text.put_slice(format!("{time:.9} ").as_bytes());
            }
            text.put_slice(&line.text);
            if !line.partial {
                text.put_u8(b'\n');
            }
            self.in_line = line.partial;
        }
        let length = text.len() as u64;
        if self.options.limit.is_some() && length >= self.left {
            text.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.last = text.freeze();
            return None;
        }
        self.left -= length;
        Some(text.freeze())
    }

    fn last(&mut self) -> Bytes {
        std::mem::take(&mut self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(query: &str) -> Result<Options, Refused> {
        let now = Timestamp::from_second(1_000).expect("a time");
        options(&Query::parse(query).expect("a query"), now)
    }

    #[test]
    fn every_option_of_a_log_is_understood() {
        let all = "follow=true&previous=True&timestamps=&sinceSeconds=10&tailLines=5&limitBytes=7";
        let expected = Options {
            follow: true,
            previous: true,
            timestamps: true,
            since_ns: Some(990_000_000_000),
            tail: Some(5),
            limit: Some(7),
            stream: Which::All,
        };
        assert_eq!(parsed(all), Ok(expected));
        assert_eq!(parsed("follow=false&stream=All"), Ok(Options::default()));
        let since = parsed("sinceTime=1970-01-01T00:00:02.5Z").expect("options").since_ns;
        assert_eq!(since, Some(2_500_000_000));
        assert_eq!(parsed("tail=3").expect("options").tail, Some(3));
        assert_eq!(parsed("tail=all&tailLines=3").expect("options").tail, None);
        assert_eq!(parsed("stream=Stderr").expect("options").stream, Which::Stderr);
    }

    #[test]
    fn a_combination_that_makes_no_sense_is_invalid_and_a_number_that_is_none_unreadable() {
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=1970-01-01T00:00:00Z",
            "stream=Stdout&tailLines=1",
            "stream=Both",
        ] {
            assert_eq!(parsed(query), Err(Refused::Invalid), "{query}");
        }
        for query in ["tailLines=x", "limitBytes=", "sinceSeconds=1.5", "sinceTime=yesterday"] {
            assert_eq!(parsed(query), Err(Refused::Unreadable), "{query}");
        }
    }

    fn pod(state: serde_json::Value, last: serde_json::Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 2,
                "containerID": "copepod://u/c/2", "state": state, "lastState": last,
            }]},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn the_run_whose_log_is_shown_is_chosen_by_the_container_s_status() {
        let none = json!({});
        let running = json!({"running": {}});
        let over = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let at = |attempt: u32| format!("copepod://u/c/{attempt}");
        let said = |what: &str| Err(format!("container \"c\" in pod \"p\" is {what}"));
        let no_previous =
            Err("previous terminated container \"c\" in pod \"p\" not found".to_owned());
        let table = [
            (running.clone(), over(&at(1)), Ok(2), Ok(1)),
            (running, none.clone(), Ok(2), no_previous.clone()),
            (over(&at(2)), over(&at(1)), Ok(2), Ok(1)),
            (over(""), over(&at(1)), Ok(1), Ok(1)),
            (over(""), none.clone(), said("terminated"), no_previous.clone()),
            (waiting("CrashLoopBackOff"), over(&at(2)), Ok(2), Ok(2)),
            (
                waiting("ContainerCreating"),
                none.clone(),
                said("waiting to start: ContainerCreating"),
                no_previous.clone(),
            ),
            (
                waiting("ErrImagePull"),
                none.clone(),
                said("waiting to start: image can't be pulled"),
                no_previous.clone(),
            ),
            (
                waiting("ImagePullBackOff"),
                none.clone(),
                said("waiting to start: trying and failing to pull image"),
                no_previous.clone(),
            ),
            (none.clone(), none, said("waiting to start - no logs yet"), no_previous),
        ];
        for (state, last, newest, previous) in table {
            let pod = pod(state.clone(), last.clone());
            assert_eq!(choose(&pod, "c", false), newest, "{state} {last}");
            assert_eq!(choose(&pod, "c", true), previous, "{state} {last}");
        }
        assert_eq!(
            choose(&Pod::default(), "c", false),
            Err("container \"c\" in pod \"\" is not available".into())
        );
    }

    fn line(second: i64, text: &str, partial: bool) -> LogLine {
        LogLine {
            time_ns: second * 1_000_000_000,
            stderr: second % 2 == 1,
            text: text.into(),
            partial,
        }
    }

    #[test]
    fn a_line_in_parts_has_one_time_and_one_end() {
        let mut shown = Shown::new(Options { timestamps: true, ..Options::default() });

        let text = shown.show(&[line(2, "ab", true), line(3, "cd", false), line(4, "", false)]);

        let expected = "1970-01-01T00:00:02.000000000Z abcd\n1970-01-01T00:00:04.000000000Z \n";
        assert_eq!(text.expect("goes on"), expected.as_bytes());
    }

    #[test]
    fn what_is_too_old_or_of_another_stream_is_left_out() {
        let lines = [line(1, "a", false), line(2, "b", false), line(3, "c", false)];
        let shown = |options| Shown::new(options).show(&lines).expect("goes on");

        assert_eq!(
            shown(Options { since_ns: Some(2_000_000_000), ..Options::default() }),
            "b\nc\n"
        );
        assert_eq!(shown(Options { stream: Which::Stdout, ..Options::default() }), "b\n");
        assert_eq!(shown(Options { stream: Which::Stderr, ..Options::default() }), "a\nc\n");
    }

    #[test]
    fn no_byte_beyond_the_limit_is_sent() {
        let mut shown = Shown::new(Options { limit: Some(5), ..Options::default() });

        assert_eq!(shown.show(&[line(1, "ab", false)]).expect("goes on"), "ab\n");
        assert_eq!(shown.show(&[line(2, "cdef", false)]), None);
        assert_eq!(shown.last(), "cd");
    }
}
