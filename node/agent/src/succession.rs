//! After an upgrade: what runners of other generations serve goes to runners of the agent's own, without a request that fails.
//!
//! A tree changes hands as a whole, once only HTTP components run in it: an instance of theirs lives for a request, so that nothing
//! of them is lost where the next request has another runner's. A second runner starts in the same tree and network, gets every pod
//! and every listening socket, and accepts beside the first; then the first accepts no more, lets what it has accepted come to its
//! end, and ends. A container keeps its attempt, its start and its restart count. Its variables are those that a restart would give.
//!
//! Programs run on where they are, until they end or are evicted (`--max-runner-age` of a cluster's node), and keep their tree's HTTP
//! components there.
//!
//! Absent: how two runners share a tree (`copepod_domain::Heir`), and whose place is whose (`domains`).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use copepod_node::ContainerName;
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{Answer, AttemptId, AttemptState, PodReport, Request, Retire};
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::argv;
use crate::causes::with_causes;
use crate::domains::{DomainError, Succession};
use crate::front::Outdated;
use crate::owner::Wake;
use crate::perform::Performer;
use crate::pod::{ReadyImage, World};
use crate::runner::{Alone, RequestError};
use crate::sandbox;

/// How often trees that could not be taken over are looked at again: programs end, and pods are evicted.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a request that has begun may take where its pod says nothing: as long as a kubelet gives a pod to end.
const GRACE: Duration = Duration::from_secs(30);

/// A pod and what runs of it.
pub(crate) type Running = (Arc<World>, Vec<(ContainerName, u32)>);

/// Why a tree stays with its runner for now.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("container {container} of pod {pod} is a program, which goes on where it runs")]
    Program { pod: String, container: String },
    #[error("a pod came or went meanwhile")]
    Changed,
    #[error("container {container} of pod {pod} cannot be made ready: {why}")]
    NotReady { pod: String, container: String, why: String },
    #[error(transparent)]
    Domain(#[from] DomainError),
    #[error(transparent)]
    Runner(#[from] RequestError),
}

/// Hands trees over until none is left whose runner is of another generation. Only an agent's start adds to them.
pub(crate) async fn run(performer: Arc<Performer>) {
    if !performer.domains.host().can_have_heirs() {
        return;
    }
    let mut told: HashMap<String, String> = HashMap::new();
    loop {
        let trees = performer.domains.outdated();
        if trees.is_empty() {
            return;
        }
        for tree in trees {
            match hand_over(&performer, &tree).await {
                Ok(containers) => {
                    tracing::info!(
                        tree,
                        containers,
                        "its runner has left all to one of this build"
                    );
                    performer.remove_unused_generations().await;
                }
                Err(stays) => {
                    let why = with_causes(&stays);
                    if told.get(&tree) != Some(&why) {
                        tracing::info!(tree, why, "its runner is of another build, and goes on");
                        told.insert(tree, why);
                    }
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What runs of these pods now; the error: the agent is ending.
async fn running(
    performer: &Performer,
    pods: Vec<String>,
) -> Result<Vec<Running>, oneshot::error::RecvError> {
    let (answer, answered) = oneshot::channel();
    let _ = performer.wake.send(Wake::Running { pods, answer }).await;
    answered.await
}

/// Has a runner of the agent's own generation take a tree over; how many containers it serves then.
async fn hand_over(performer: &Performer, tree: &str) -> Result<usize, Stays> {
    let pods = running(performer, performer.domains.pods_in(tree)).await;
    let pods = pods.map_err(|_| Stays::Changed)?;
    let ready = make_ready(performer, &pods).await?;
    let Some(succession) = performer.domains.start_heir(tree).await? else { return Ok(0) };

    let alone = succession.old.runner.alone().await;
    let reports = match alone.runner().ask(Request::List, &[]).await? {
        (Answer::List(reports), _) => reports,
        _ => return Err(Stays::Changed),
    };
    let wanted = wanted(&pods, &reports)?;
    let grace = wanted.iter().map(|(world, _)| grace(world)).max().unwrap_or(GRACE);
    let mut attempts = Vec::new();
    let taken = take(performer, &succession, &alone, &wanted, &ready, &mut attempts).await;
    let count = attempts.len();
    let deadline = Timestamp::now().checked_add(grace).unwrap_or(Timestamp::MAX);
    let retire = Retire { attempts, deadline_ms: deadline.as_millisecond() };
    if let Err(stays) = taken {
        succession.call_off(retire).await;
        return Err(stays);
    }
    performer.domains.succeed(succession, alone, retire).await?;
    for (world, running) in pods {
        for (container, _) in running {
            let key = (world.uid.clone(), container.to_string());
            if let Some(ready) = ready.get(&key) {
                world.put_image(container.as_ref(), ready.clone());
            }
        }
    }
    Ok(count)
}

type Ready = HashMap<(String, String), Arc<ReadyImage>>;

/// The code of all that runs, by the agent's own compiler. Nothing is compiled where a program keeps the tree where it is.
async fn make_ready(performer: &Performer, pods: &[Running]) -> Result<Ready, Stays> {
    let all: Vec<_> = pods
        .iter()
        .flat_map(|(world, running)| running.iter().map(move |(container, _)| (world, container)))
        .collect();
    let not_ready = |world: &World, container: &ContainerName, why: String| Stays::NotReady {
        pod: world.name().name,
        container: container.to_string(),
        why,
    };
    let mut images = Vec::new();
    let mut program = None;
    // Each of them, so that it is known of every pod whether it can leave.
    for (world, container) in all {
        let found = performer.image_of(world, container.as_ref()).await;
        let found = found.map_err(|failed| not_ready(world, container, failed.message))?;
        if found.code.inspection.kind != Kind::HttpComponent || runs_a_file(world, container) {
            let (pod, container) = (world.name().name, container.to_string());
            program.get_or_insert(Stays::Program { pod, container });
        }
        images.push((world, container, found));
    }
    if let Some(program) = program {
        return Err(program);
    }
    let mut ready = Ready::new();
    for (world, container, found) in images {
        let code = performer.own_code(&found.image).await;
        let code = code.map_err(|error| not_ready(world, container, with_causes(&error)))?;
        let image = found.image.clone();
        let key = (world.uid.clone(), container.to_string());
        ready.insert(key, Arc::new(ReadyImage { image, code }));
    }
    Ok(ready)
}

/// Whether a container may run another program than its image's: nobody but its runner knows what that is, and it stays there.
fn runs_a_file(world: &World, container: &ContainerName) -> bool {
    let image = world.image(container.as_ref());
    let spec = world.container(container.as_ref());
    image.zip(spec).is_some_and(|(ready, spec)| argv::may_be_a_file(&spec, &ready.image))
}

/// What runners of other generations still serve.
pub(crate) async fn outdated(performer: &Performer) -> Outdated {
    let trees = performer.domains.outdated();
    let pods = trees.iter().flat_map(|tree| performer.domains.pods_in(tree)).collect();
    let pods = running(performer, pods).await.unwrap_or_default();
    let is_program = |world: &World, container: &ContainerName| {
        let image = world.image(container.as_ref());
        image.is_some_and(|it| it.code.inspection.kind != Kind::HttpComponent)
            || runs_a_file(world, container)
    };
    let stay = |(world, running): &&Running| {
        running.iter().any(|(container, _)| is_program(world, container))
    };
    let programs = pods.iter().filter(stay).map(|(world, _)| world.stored.pod.clone()).collect();
    Outdated { since: performer.current_since, runners: trees.len(), pods: pods.len(), programs }
}

/// A pod that is to be taken over, with each attempt that runs, and nothing of those that have ended.
type Wanted<'a> = (&'a Arc<World>, Vec<AttemptId>);

/// What the old runner holds, with its pods as the agent knows them.
fn wanted<'a>(pods: &'a [Running], reports: &[PodReport]) -> Result<Vec<Wanted<'a>>, Stays> {
    let mut wanted = Vec::new();
    for report in reports {
        let mut attempts = Vec::new();
        for container in &report.containers {
            if matches!(container.state, AttemptState::Running { .. }) {
                attempts.push(AttemptId {
                    pod: report.pod.clone(),
                    container: container.container.clone(),
                    attempt: container.attempt,
                });
            }
        }
        let known = pods.iter().find(|(world, _)| world.uid == report.pod);
        let (world, _) = known.ok_or(Stays::Changed)?;
        wanted.push((world, attempts));
    }
    Ok(wanted)
}

/// Gives the heir every pod, and each attempt with the sockets on which it listens; `handed` tells which it serves.
async fn take(
    performer: &Performer,
    succession: &Succession,
    alone: &Alone,
    wanted: &[Wanted<'_>],
    ready: &Ready,
    handed: &mut Vec<AttemptId>,
) -> Result<(), Stays> {
    let (old, heir) = (alone.runner(), &succession.connection);
    // All of it first: from the first start on two runners accept.
    let mut sockets: HashMap<&AttemptId, (i64, Vec<OwnedFd>)> = HashMap::new();
    for id in wanted.iter().flat_map(|(_, attempts)| attempts) {
        match old.ask(Request::HandOver(id.clone()), &[]).await? {
            (Answer::HandedOver { since_us }, listening) => {
                sockets.insert(id, (since_us, listening));
            }
            _ => return Err(Stays::Changed),
        }
    }
    for (world, attempts) in wanted {
        let sandbox = sandbox::pod_sandbox(performer, world).map_err(|_| Stays::Changed)?;
        heir.ask(Request::CreatePod(sandbox), &[]).await?;
        for id in attempts {
            let key = (id.pod.clone(), id.container.clone());
            let ready = ready.get(&key).ok_or(Stays::Changed)?;
            let (since_us, listening) = sockets.remove(id).ok_or(Stays::Changed)?;
            let start =
                sandbox::start_request(performer, world, &id.container, id.attempt, ready).await;
            let mut start = start.map_err(|failed| Stays::NotReady {
                pod: world.name().name,
                container: id.container.clone(),
                why: failed.message,
            })?;
            start.since_us = Some(since_us);
            heir.ask(Request::Start(Box::new(start)), &listening).await?;
            handed.push(id.clone());
        }
        let pod = world.uid.clone();
        let published = old.ask(Request::HandOverPublished { pod: pod.clone() }, &[]).await?;
        if let (Answer::Published(ports), listening) = published {
            for (port, socket) in ports.into_iter().zip(listening) {
                heir.ask(Request::Publish { pod: pod.clone(), port }, &[socket]).await?;
            }
        }
    }
    Ok(())
}

fn grace(world: &World) -> Duration {
    let spec = world.stored.pod.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.termination_grace_period_seconds);
    seconds.and_then(|it| u64::try_from(it).ok()).map_or(GRACE, Duration::from_secs)
}
