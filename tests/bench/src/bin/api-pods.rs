//! `api-pods KUBECONFIG PODS ACT [GRACE]`: acts on the pods of a JSON list in the file PODS, and follows them by a watch.
//!
//! ACT is `one-by-one`: each is created once the one before is ready; `together`: all are created as fast as the API server takes
//! them; or `delete`: all are deleted with GRACE seconds, until the API server has none. Those that are created print what [`Times`]
//! holds. All pods bear one value of the label `bench`, by which they are watched.
//!
//! Absent: bringing up who runs them; retries, as a request that fails spoils what is measured.

// The times are what it is for.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

/// Requests under way at a time where pods come together.
const TOGETHER: usize = 32;

/// So long may pass without one pod becoming what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is printed.
#[derive(Default, Serialize)]
struct Times {
    /// Of each pod: from the API server's answer that it is made, until the watch told that it is ready.
    answered_to_ready_ms: Vec<f64>,
    /// Of each pod: the same from just before the API server was asked.
    asked_to_ready_ms: Vec<f64>,
    /// From the first question, until the last pod was made.
    all_made_s: f64,
    /// From the first question, until the last pod was ready.
    all_ready_s: f64,
}

/// Namespace and name.
type Key = (String, String);

/// Of what the API server tells of a pod, what is looked at here.
#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    resource_version: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Told {
    r#type: String,
    object: Value,
}

/// What the watch told of a pod.
struct News {
    key: Key,
    what: What,
    at: Instant,
    /// From where a later watch goes on.
    version: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Ready,
    Gone,
    Other,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let [kubeconfig, pods, act, rest @ ..] = &arguments[..] else {
            bail!("api-pods KUBECONFIG PODS one-by-one|together|delete [GRACE]")
        };
        let pods: Vec<Value> = serde_json::from_slice(&std::fs::read(pods)?)?;
        let mut api = Api::connect(kubeconfig, &pods).await?;
        let times = match (*act, rest) {
            ("one-by-one", []) => api.one_by_one(&pods).await?,
            ("together", []) => api.together(&pods).await?,
            ("delete", [grace]) => return api.delete(&pods, grace).await,
            _ => bail!("{act} is not understood"),
        };
        println!("{}", serde_json::to_string(&times)?);
        Ok(())
    })
}

/// The API server, and a watch of the pods.
struct Api {
    client: Client,
    news: mpsc::UnboundedReceiver<Result<News>>,
}

impl Api {
    async fn connect(kubeconfig: &str, pods: &[Value]) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let label = pods.first().and_then(|pod| pod["metadata"]["labels"]["bench"].as_str());
        let all = format!("/api/v1/pods?labelSelector=bench%3D{}", label.context("no label")?);
        let none = client.request::<Value>(get(&format!("{all}&limit=1"))?).await?;
        let version = none["metadata"]["resourceVersion"].as_str().context("no version")?;
        let (tell, news) = mpsc::unbounded_channel();
        let watch = watch(client.clone(), all, version.to_owned(), tell.clone());
        tokio::spawn(async move {
            if let Err(error) = watch.await {
                let _ = tell.send(Err(error));
            }
        });
        Ok(Self { client, news })
    }

    async fn one_by_one(&mut self, pods: &[Value]) -> Result<Times> {
        let mut times = Times::default();
        let begin = Instant::now();
        for pod in pods {
            let asked = Instant::now();
            create(&self.client, pod).await?;
            let answered = Instant::now();
            let ready = self.all_are(What::Ready, 1).await?;
            let at = *ready.get(&key(pod)).context("another pod became ready")?;
            times.add(asked, answered, at);
        }
        times.all_ready_s = begin.elapsed().as_secs_f64();
        times.all_made_s = times.all_ready_s;
        Ok(times)
    }

    async fn together(&mut self, pods: &[Value]) -> Result<Times> {
        let mut times = Times::default();
        let begin = Instant::now();
        let client = self.client.clone();
        let created = tokio::spawn(
            stream::iter(pods.to_vec())
                .map(move |pod| {
                    let client = client.clone();
                    async move {
                        let asked = Instant::now();
                        create(&client, &pod).await?;
                        anyhow::Ok((key(&pod), asked, Instant::now()))
                    }
                })
                .buffer_unordered(TOGETHER)
                .try_collect::<Vec<_>>(),
        );
        let ready = self.all_are(What::Ready, pods.len()).await?;
        let created = created.await??;
        for (key, asked, answered) in &created {
            times.add(*asked, *answered, *ready.get(key).context("a pod is missing")?);
        }
        let last = |all: &mut dyn Iterator<Item = Instant>| {
            all.max().map_or(0.0, |last| last.duration_since(begin).as_secs_f64())
        };
        times.all_made_s = last(&mut created.iter().map(|(.., answered)| *answered));
        times.all_ready_s = last(&mut ready.values().copied());
        Ok(times)
    }

    async fn delete(&mut self, pods: &[Value], grace: &str) -> Result<()> {
        let client = self.client.clone();
        let paths: Vec<String> = pods
            .iter()
            .map(|pod| {
                let (namespace, name) = key(pod);
                format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds={grace}")
            })
            .collect();
        let deleted = stream::iter(paths)
            .map(move |path| {
                let client = client.clone();
                async move {
                    let request = Request::delete(path).body(Vec::new())?;
                    client.request::<Value>(request).await?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(TOGETHER)
            .try_collect::<()>();
        let (deleted, gone) = tokio::join!(deleted, self.all_are(What::Gone, pods.len()));
        deleted?;
        gone?;
        Ok(())
    }

    /// Waits until so many pods are so; when the watch told it of each first.
    async fn all_are(&mut self, what: What, wanted: usize) -> Result<HashMap<Key, Instant>> {
        let mut all = HashMap::new();
        let mut last = Instant::now();
        while all.len() < wanted {
            let left = PATIENCE.saturating_sub(last.elapsed());
            let Ok(news) = tokio::time::timeout(left, self.news.recv()).await else {
                bail!("{} of {wanted} pods came so far, and none more for {PATIENCE:?}", all.len());
            };
            let news = news.context("the watch ended")??;
            if news.what == what && !all.contains_key(&news.key) {
                all.insert(news.key, news.at);
                last = news.at;
            }
        }
        Ok(all)
    }
}

impl Times {
    fn add(&mut self, asked: Instant, answered: Instant, ready: Instant) {
        let since = |begin| ready.saturating_duration_since(begin).as_secs_f64() * 1e3;
        self.asked_to_ready_ms.push(since(asked));
        self.answered_to_ready_ms.push(since(answered));
    }
}

async fn create(client: &Client, pod: &Value) -> Result<()> {
    let (namespace, name) = key(pod);
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(pod)?)?;
    // The answer is not looked at: whether it is good, the client tells.
    let made = client.request_text(request).await.with_context(|| format!("create {name}"))?;
    ensure!(!made.is_empty(), "an empty answer");
    Ok(())
}

/// Tells what comes, for as long as somebody listens. A watcher that falls behind under load is hung up on, and goes on where it was.
async fn watch(
    client: Client,
    all: String,
    mut version: String,
    tell: mpsc::UnboundedSender<Result<News>>,
) -> Result<()> {
    loop {
        let path = format!("{all}&watch=1&timeoutSeconds=3600&resourceVersion={version}");
        let mut lines = client.request_stream(get(&path)?).await?.lines();
        while let Some(Ok(line)) = lines.next().await {
            let news = read(&line)?;
            version.clone_from(&news.version);
            if tell.send(Ok(news)).is_err() {
                return Ok(());
            }
        }
    }
}

fn read(line: &str) -> Result<News> {
    let at = Instant::now();
    let told: Told = serde_json::from_str(line)?;
    ensure!(told.r#type != "ERROR", "the watch was told: {}", told.object);
    let Pod { metadata, status } = Pod::deserialize(told.object)?;
    let is_ready = |it: &Condition| it.r#type == "Ready" && it.status == "True";
    let what = match told.r#type.as_str() {
        "DELETED" => What::Gone,
        _ if status.conditions.iter().any(is_ready) => What::Ready,
        _ => What::Other,
    };
    let key = (metadata.namespace, metadata.name);
    Ok(News { key, what, at, version: metadata.resource_version })
}

fn get(path: &str) -> Result<Request<Vec<u8>>> {
    Ok(Request::get(path).body(Vec::new())?)
}

fn key(pod: &Value) -> Key {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}
