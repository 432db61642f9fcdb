//! The commands that look at pods and act on them: ps, describe, logs, exec, stop, stats.
//!
//! Each asks the agent and prints the answer. Absent: what the answers look like ([`crate::show`], [`crate::log_lines`]).

use std::io;
use std::time::Duration;

use copepod_agent::api::{
    AttachTo, Call, ContainerUse, ExecIn, LogPosition, LogsOf, PodName, PodView, Reply, StopPods,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::{Attach, Describe, Exec, Logs, OnePod, PodArg, Ps, PsOutput, Stats, Stop};
use crate::client::{Client, ClientError, after_break, odd};
use crate::exit::{NEVER, passed_on};
use crate::log_lines::Printer;
use crate::out::{Out, harmless};
use crate::show;
use crate::streams::Streams;

/// Between the two looks of `stats`: long enough for a millicore to show, short enough to wait for.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// After a connection that broke, before the next.
const AGAIN: Duration = Duration::from_millis(200);

/// Why a command ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The agent, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Our own output.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

fn named(pod: &PodArg, namespace: &str) -> PodName {
    let namespace = pod.namespace.clone().unwrap_or_else(|| namespace.to_owned());
    PodName { namespace, name: pod.name.clone() }
}

fn one(pod: &OnePod) -> PodName {
    named(&pod.pod, &pod.namespace)
}

/// All pods; none where no agent runs and none has to.
async fn list(client: &mut Client) -> Result<Vec<PodView>, ClientError> {
    match client.ask(&Call::List).await {
        Ok(Reply::Pods(pods)) => Ok(pods),
        Ok(other) => Err(odd(&other)),
        Err(ClientError::NoAgent(_)) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// One pod.
async fn get(client: &mut Client, name: &PodName) -> Result<(Pod, PodView), ClientError> {
    let absent = || {
        let PodName { namespace, name } = name;
        ClientError::Failed(format!("there is no pod {name} in namespace {namespace}"))
    };
    let view = match client.ask(&Call::Get(name.clone())).await {
        Ok(Reply::Pods(pods)) => pods.into_iter().next().ok_or_else(absent)?,
        Ok(other) => return Err(odd(&other)),
        Err(ClientError::NoAgent(_)) => return Err(absent()),
        Err(error) => return Err(error),
    };
    let pod = serde_json::from_str(&view.pod).map_err(|e| ClientError::Odd(e.to_string()))?;
    Ok((pod, view))
}

/// `copepod ps`.
pub(crate) async fn ps(out: Out, client: &mut Client, args: &Ps) -> Result<u8, Failed> {
    let views = list(client).await?;
    let is_asked_for = |namespace: Option<&str>| {
        args.namespace.as_deref().is_none_or(|asked| namespace == Some(asked))
    };
    if args.output == Some(PsOutput::Json) {
        let items: Vec<serde_json::Value> =
            views.iter().filter_map(|view| serde_json::from_str(&view.pod).ok()).collect();
        let items: Vec<_> = items
            .into_iter()
            .filter(|pod| is_asked_for(pod["metadata"]["namespace"].as_str()))
            .collect();
        let all = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        out.line(&format!("{all:#}"))?;
        return Ok(0);
    }
    let pods: Vec<Pod> = views
        .iter()
        .filter_map(|view| serde_json::from_str::<Pod>(&view.pod).ok())
        .filter(|pod| is_asked_for(pod.metadata.namespace.as_deref()))
        .collect();
    if pods.is_empty() {
        out.note("no pods");
        return Ok(0);
    }
    let wide = args.output == Some(PsOutput::Wide);
    out.write(show::ps::pods(&pods, wide, Timestamp::now()).as_bytes())?;
    Ok(0)
}

/// `copepod describe`.
pub(crate) async fn describe(out: Out, client: &mut Client, args: &Describe) -> Result<u8, Failed> {
    let (pod, view) = get(client, &one(&args.pod)).await?;
    let (progress, never) = (view.progress.as_deref(), view.never.as_deref());
    let text = show::describe::pod(&pod, &view.events, progress, never, Timestamp::now());
    out.write(text.as_bytes())?;
    Ok(0)
}

/// `copepod logs`.
pub(crate) async fn logs(out: Out, mut client: Client, args: Logs) -> Result<u8, Failed> {
    let name = one(&args.pod);
    let since = args.since.map(|span| Timestamp::now().as_second() - span.0.as_secs());
    let mut calls = Vec::new();
    let wanted = |container: Option<String>| LogsOf {
        pod: name.clone(),
        container,
        previous: args.previous,
        follow: args.follow,
        tail: args.tail,
        since,
        after: None,
    };
    if args.all_containers {
        let (pod, _) = get(&mut client, &name).await?;
        let spec = pod.spec.unwrap_or_default();
        let containers = spec.init_containers.into_iter().flatten().chain(spec.containers);
        calls.extend(containers.map(|container| wanted(Some(container.name))));
    } else {
        calls.push(wanted(args.container.clone()));
    }
    let label = |call: &LogsOf| call.container.clone().unwrap_or_default();
    let containers = calls.iter().map(label).collect();
    let mut printer = Printer::new(out, &[(name, containers)]).with_timestamps(args.timestamps);
    if !args.follow {
        let mut missing = Vec::new();
        let is_one = calls.len() == 1;
        for mut call in calls {
            let container = label(&call);
            let read = read_log(&mut client, &mut call, |piece| {
                printer.print(0, &container, piece).map_err(Failed::from)
            });
            match read.await {
                // One of several that has not run yet has no log; the others do.
                Err(Failed::Client(ClientError::Failed(why))) if !is_one => missing.push(why),
                done => done?,
            }
        }
        missing.iter().for_each(|why| out.note(&harmless(why)));
        return Ok(0);
    }
    // Bounded, so that a terminal that is slow slows the reading and not the memory.
    let (sender, mut receiver) = mpsc::channel(16);
    let client = std::sync::Arc::new(tokio::sync::Mutex::new(client));
    for mut call in calls {
        let (sender, client) = (sender.clone(), client.clone());
        tokio::spawn(async move {
            let container = label(&call);
            let end =
                follow_log(&client, &mut call, |piece| sender.send((container.clone(), Ok(piece))))
                    .await;
            if let Err(error) = end {
                let _ = sender.send((container, Err(error))).await;
            }
        });
    }
    drop(sender);
    let mut failed = None;
    while let Some((container, piece)) = receiver.recv().await {
        match piece {
            Ok(piece) => printer.print(0, &container, &piece)?,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(0),
    }
}

/// Reads a log that is not followed; where the agent goes away over it, once more from there.
async fn read_log(
    client: &mut Client,
    call: &mut LogsOf,
    mut print: impl FnMut(&copepod_agent::api::LogPiece) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut is_again = false;
    'connect: loop {
        let mut connection = client.connect_if_needed().await?;
        connection.call(&Call::Logs(call.clone()), &[]).await?;
        loop {
            match connection.next().await {
                Ok(Reply::Log(piece)) => {
                    print(&piece)?;
                    go_on_after(call, piece.position);
                }
                Ok(_) => return Ok(()),
                Err(error) if error.is_broken() && !is_again => {
                    is_again = true;
                    continue 'connect;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Follows a log over all agents, until it is over.
async fn follow_log<F, S, E>(
    client: &tokio::sync::Mutex<Client>,
    call: &mut LogsOf,
    mut pass_on: F,
) -> Result<(), ClientError>
where
    F: FnMut(copepod_agent::api::LogPiece) -> S,
    S: Future<Output = Result<(), E>>,
{
    loop {
        let mut connection = client.lock().await.connect_if_needed().await?;
        let mut asked = connection.call(&Call::Logs(call.clone()), &[]).await;
        while asked.is_ok() {
            match connection.next().await {
                Ok(Reply::Log(piece)) => {
                    let position = piece.position;
                    if pass_on(piece).await.is_err() {
                        return Ok(());
                    }
                    go_on_after(call, position);
                }
                Ok(_) => return Ok(()),
                Err(error) => asked = Err(error),
            }
        }
        match asked {
            Err(error) if error.is_broken() => tokio::time::sleep(AGAIN).await,
            asked => return asked,
        }
    }
}

fn go_on_after(call: &mut LogsOf, position: LogPosition) {
    call.after = Some(position);
    // They chose where to begin, which is now behind us.
    call.tail = None;
    call.since = None;
}

/// `copepod exec`.
pub(crate) async fn exec(out: Out, client: &mut Client, args: Exec) -> Result<u8, Failed> {
    let Exec { target, tty, command } = args;
    let streams = Streams::new(target.stdin, tty)?;
    let (pod, container) = (one(&target.pod), target.container);
    let call = Call::Exec(ExecIn { pod, container, args: command, tty });
    ended(out, with_streams(client, &call, streams).await?)
}

/// The answer to a call that has streams, once all that was written is shown.
async fn with_streams(client: &mut Client, call: &Call, streams: Streams) -> Result<Reply, Failed> {
    let mut connection = client.connect_if_needed().await?;
    connection.call(call, &streams.descriptors).await?;
    // The guest has its own; ours would keep its stdout open behind it.
    let shown = streams.given();
    // Never asked twice: the program may have done its work before the agent went away.
    let reply = connection.next().await?;
    shown();
    Ok(reply)
}

/// The exit code of what has run.
fn ended(out: Out, reply: Reply) -> Result<u8, Failed> {
    match reply {
        Reply::Exited { code, message } => {
            if let Some(message) = message.filter(|message| !message.is_empty()) {
                out.error(&harmless(&message));
            }
            Ok(passed_on(code))
        }
        other => Err(odd(&other).into()),
    }
}

/// `copepod attach`.
pub(crate) async fn attach(out: Out, client: &mut Client, args: Attach) -> Result<u8, Failed> {
    let target = args.target;
    let streams = Streams::new(target.stdin, true)?;
    let call = Call::Attach(AttachTo { pod: one(&target.pod), container: target.container });
    match with_streams(client, &call, streams).await? {
        Reply::Done => Ok(0),
        other => ended(out, other),
    }
}

/// `copepod stop`.
pub(crate) async fn stop(out: Out, client: &mut Client, args: &Stop) -> Result<u8, Failed> {
    let pods: Vec<_> = args.pods.iter().map(|pod| named(pod, &args.namespace)).collect();
    let call = Call::Stop(StopPods { pods: pods.clone(), all: args.all, grace: args.grace });
    match client.ask_once(&call).await {
        Ok(Reply::Done) => {}
        Ok(other) => return Err(odd(&other).into()),
        Err(ClientError::NoAgent(_)) if args.all => {
            out.note("no pods");
            return Ok(0);
        }
        Err(error) if error.is_broken() => stop_again(client, call, &pods).await?,
        Err(error) => return Err(error.into()),
    }
    for PodName { namespace, name } in &pods {
        out.line(&format!("{namespace}/{name} stopped"))?;
    }
    if args.all {
        out.line("all pods stopped")?;
    }
    Ok(0)
}

/// Asks once more for a stop over which the agent went away. It may have done its work before: pods that are gone are stopped.
async fn stop_again(client: &mut Client, call: Call, pods: &[PodName]) -> Result<(), ClientError> {
    after_break().await;
    match client.ask(&call).await {
        Ok(Reply::Done) => return Ok(()),
        Ok(other) => return Err(odd(&other)),
        Err(ClientError::NoAgent(_) | ClientError::Failed(_)) => {}
        Err(error) => return Err(error),
    }
    let Call::Stop(StopPods { all, grace, .. }) = call else { return Ok(()) };
    let left: Vec<PodName> = list(client)
        .await?
        .iter()
        .filter_map(|view| serde_json::from_str::<Pod>(&view.pod).ok())
        .map(|pod| PodName {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
        })
        .filter(|pod| all || pods.contains(pod))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    match client.ask(&Call::Stop(StopPods { pods: left, all, grace })).await? {
        Reply::Done => Ok(()),
        other => Err(odd(&other)),
    }
}

/// `copepod stats`.
pub(crate) async fn stats(out: Out, client: &mut Client, args: &Stats) -> Result<u8, Failed> {
    let (before, at) = (usage(client, args).await?, Instant::now());
    if before.is_empty() {
        out.note("no containers run");
        return Ok(0);
    }
    tokio::time::sleep(BETWEEN_LOOKS).await;
    let after = usage(client, args).await?;
    out.write(show::usage::containers(&before, &after, at.elapsed()).as_bytes())?;
    Ok(0)
}

async fn usage(client: &mut Client, args: &Stats) -> Result<Vec<ContainerUse>, ClientError> {
    let mut all = match client.ask(&Call::Stats).await {
        Ok(Reply::Stats(all)) => all,
        Ok(other) => return Err(odd(&other)),
        Err(ClientError::NoAgent(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    if let Some(namespace) = &args.namespace {
        all.retain(|it| it.pod.namespace == *namespace);
    }
    Ok(all)
}

/// Tells why a command ended so; its exit code.
pub(crate) fn tell(out: Out, failed: &Failed) -> u8 {
    match failed {
        Failed::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => crate::exit::PIPE,
        Failed::Client(ClientError::CannotStart { .. } | ClientError::OtherVersion { .. }) => {
            out.error(&failed.to_string());
            NEVER
        }
        _ => {
            out.error(&harmless(&failed.to_string()));
            1
        }
    }
}
