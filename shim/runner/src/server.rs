//! The protocol's side of the runner: connections of agents, their requests, and the events they hear.
//!
//! Several agents may be connected at a time (an old one that is dying, and its successor); each is heard. Nothing that
//! an agent does, or fails to read, holds up a guest. Absent: what the requests do ([`crate::pods`]).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use copepod_shim::protocol::{
    Answer, AttemptState, Failure, FromRunner, Hello, Request, ToRunner, VERSIONS,
};
use copepod_shim::wire::{self, FrameReceiver, FrameSender, WireError};
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use crate::pods::Pods;

/// How long a peer may take to introduce itself.
const SHAKE_HANDS_WITHIN: Duration = Duration::from_secs(10);

/// Requests of one connection in work at a time; the next ones are read when one is answered. Execs count, and a node runs
/// 110 pods by default.
const MAX_REQUESTS: usize = 1_024;

/// Agents connected at a time: one, its successor, and room for those that are dying.
const MAX_AGENTS: usize = 16;

/// A pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What of a frame is understood even when its request is not.
#[derive(Deserialize)]
struct OnlyId {
    id: u64,
}

/// Serves agents until one asks the runner to end.
pub async fn serve(listener: UnixListener, pods: Arc<Pods>, hello: Hello, agent_uids: Vec<u32>) {
    let agents = Arc::new(Semaphore::new(MAX_AGENTS));
    let end = Arc::new(Notify::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.notified() => return,
            () = pods.gone() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if agent_uids.contains(&peer.uid()) => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "a connection by somebody else was refused");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection by nobody knows whom was refused");
                continue;
            }
        }
        let Ok(place) = agents.clone().try_acquire_owned() else {
            tracing::warn!("a connection was refused: {MAX_AGENTS} agents are connected");
            continue;
        };
        let (pods, hello, end) = (pods.clone(), hello.clone(), end.clone());
        tokio::spawn(async move {
            match attend(stream, pods, hello, end).await {
                Ok(()) | Err(WireError::Closed) => {}
                Err(error) => tracing::info!(%error, "the connection of an agent ended"),
            }
            drop(place);
        });
    }
}

async fn attend(
    stream: UnixStream,
    pods: Arc<Pods>,
    hello: Hello,
    end: Arc<Notify>,
) -> Result<(), WireError> {
    let socket = Socket(stream.as_fd().try_clone_to_owned()?);
    let (sender, mut receiver) = wire::split(stream);
    let shaken = tokio::time::timeout(SHAKE_HANDS_WITHIN, async {
        sender.send(&hello, &[]).await?;
        receiver.receive::<Hello>().await
    });
    let (theirs, _) = shaken.await.map_err(|_| WireError::Closed)??;
    if VERSIONS.common(theirs.versions).is_none() {
        tracing::warn!(?theirs.versions, "an agent speaks no version of the protocol that this runner does");
        return Ok(());
    }
    // From here on no exit is missed: the agent lists after the handshake.
    let mut events = pods.listen();
    let event_sender = sender.clone();
    let telling = async move {
        while let Some(event) = events.recv().await {
            event_sender.send(&FromRunner::Event(event), &[]).await?;
        }
        // The agent was too far behind: it has to connect and list again.
        Err::<(), _>(WireError::Closed)
    };
    let result = tokio::select! {
        result = telling => result,
        result = hear(&mut receiver, &sender, &pods, &end) => result,
    };
    drop(socket);
    result
}

/// Ends the connection however many replies are still to come on it.
struct Socket(OwnedFd);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

async fn hear(
    receiver: &mut FrameReceiver,
    sender: &FrameSender,
    pods: &Arc<Pods>,
    end: &Arc<Notify>,
) -> Result<(), WireError> {
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let (frame, descriptors) = receiver.receive_bytes().await?;
        let Ok(place) = requests.clone().acquire_owned().await else { return Ok(()) };
        let asked = match ciborium::from_reader::<ToRunner, _>(&frame[..]) {
            Ok(asked) => asked,
            Err(error) => {
                let Ok(OnlyId { id }) = ciborium::from_reader(&frame[..]) else {
                    return Err(WireError::Malformed(error.to_string()));
                };
                ToRunner { id, request: Request::Unknown }
            }
        };
        drop(frame);
        let (sender, pods, end) = (sender.clone(), pods.clone(), end.clone());
        tokio::spawn(async move {
            let is_last = asked.request == Request::Exit;
            let (result, descriptors) = answer(&pods, asked.request, descriptors).await;
            let is_over = is_last && result.is_ok();
            reply(&sender, asked.id, result, descriptors).await;
            if is_over {
                end.notify_one();
            }
            drop(place);
        });
    }
}

async fn answer(
    pods: &Arc<Pods>,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> (Result<Answer, Failure>, Vec<OwnedFd>) {
    let result = match request {
        Request::CreatePod(sandbox) => pods.create(sandbox),
        Request::Start(spec) => pods.start(*spec, descriptors).await,
        Request::Stop(stop) => pods.stop(&stop),
        Request::RemovePod { pod } => Ok(pods.remove(&pod).await),
        Request::List => Ok(Answer::List(pods.list())),
        Request::Acknowledge(id) => Ok(pods.acknowledge(&id)),
        Request::Exec(exec) => pods.exec(exec, descriptors).await,
        Request::Attach(id) => pods.attach(&id, descriptors).await,
        Request::OpenProgram { id, name } => {
            let opened = pods.open_program(&id, &name).await;
            return split(opened.map(|file| (Answer::Descriptor, vec![file])));
        }
        Request::Dial { pod, port } => {
            return split(pods.dial(&pod, port).await.map(|it| (Answer::Descriptor, vec![it])));
        }
        Request::Publish { pod, port } => pods.publish(&pod, port, descriptors),
        Request::HandOver(id) => return split(pods.hand_over(&id)),
        Request::HandOverPublished { pod } => return split(pods.hand_over_published(&pod)),
        Request::Retire(retire) => pods.retire(&retire),
        Request::Stats => Ok(Answer::Stats(pods.stats())),
        Request::Exit => pods.may_end(),
        Request::Unknown => Err(Failure::Unsupported),
    };
    (result, Vec::new())
}

fn split(
    answered: Result<(Answer, Vec<OwnedFd>), Failure>,
) -> (Result<Answer, Failure>, Vec<OwnedFd>) {
    match answered {
        Ok((answer, descriptors)) => (Ok(answer), descriptors),
        Err(failure) => (Err(failure), Vec::new()),
    }
}

async fn reply(
    sender: &FrameSender,
    id: u64,
    result: Result<Answer, Failure>,
    descriptors: Vec<OwnedFd>,
) {
    let frame = FromRunner::Reply { id, result };
    match sender.send(&frame, &descriptors).await {
        // A list of thousands of backtraces: the codes matter more than the last words.
        Err(WireError::TooLong(_)) => {
            if let Err(error) = sender.send(&without_messages(frame), &[]).await {
                tracing::warn!(%error, "a reply was not sent");
            }
        }
        Err(error) => tracing::debug!(%error, "a reply was not sent"),
        Ok(()) => {}
    }
}

fn without_messages(mut frame: FromRunner) -> FromRunner {
    if let FromRunner::Reply { result: Ok(Answer::List(pods)), .. } = &mut frame {
        for report in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            if let AttemptState::Exited(exit) = &mut report.state {
                exit.message.clear();
            }
        }
    }
    frame
}
