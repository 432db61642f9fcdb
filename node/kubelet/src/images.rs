//! Which images the node has, for the scheduler, which likes to place a pod where its image is (kubelet.md N13).
//!
//! Absent: pulling and removing them, which is the agent's.

use std::collections::BTreeMap;
use std::time::Duration;

use copepod_agent::front::Front;
use copepod_image::Listed;
use k8s_openapi::api::core::v1::ContainerImage;
use tokio::sync::watch;

use crate::node_object::NodeState;

/// As often as the node's status is looked at; the list goes with it.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the list in `state` true until nobody wants to know.
pub async fn tell(front: Front, state: watch::Sender<NodeState>) {
    while !state.is_closed() {
        match front.images().await {
            Ok(listed) => {
                let images = reported(&listed);
                state.send_if_modified(|state| {
                    let changed = state.images != images;
                    if changed {
                        state.images = images;
                    }
                    changed
                });
            }
            Err(error) => tracing::warn!(error, "the images cannot be listed"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One entry for each manifest, under all of its names: by tag as they were pulled, and by digest.
fn reported(listed: &[Listed]) -> Vec<ContainerImage> {
    let mut by_digest: BTreeMap<String, (Vec<String>, u64)> = BTreeMap::new();
    for Listed { name, digest, bytes, .. } in listed {
        let (names, size) = by_digest.entry(digest.to_string()).or_default();
        *size = *bytes;
        let by_digest = format!("{}@{digest}", repository(name));
        for name in [by_digest, name.clone()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let image = |(names, bytes): (Vec<String>, u64)| ContainerImage {
        names: Some(names),
        size_bytes: i64::try_from(bytes).ok(),
    };
    by_digest.into_values().map(image).collect()
}

/// A name without its tag or digest: what follows the last colon is a tag only where no folder follows it.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn listed(name: &str, digit: &str, bytes: u64) -> Listed {
        let digest = format!("sha256:{}", digit.repeat(64)).parse().expect("a digest");
        Listed { name: name.to_owned(), digest, bytes, used: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn an_image_is_told_once_under_all_its_names_by_tag_and_by_digest() {
        let all = [
            listed("localhost:5000/hello:1", "a", 7),
            listed("localhost:5000/hello:latest", "a", 7),
            listed("localhost:5000/other", "b", 9),
        ];

        let told = reported(&all);

        let by_digest = format!("localhost:5000/hello@sha256:{}", "a".repeat(64));
        let names = [by_digest.as_str(), "localhost:5000/hello:1", "localhost:5000/hello:latest"];
        assert_eq!(told[0].names.as_deref(), Some(names.map(str::to_owned).as_slice()));
        assert_eq!((told.len(), told[1].size_bytes), (2, Some(9)));
        let other = told[1].names.as_ref().expect("names");
        assert_eq!(other[0], format!("localhost:5000/other@sha256:{}", "b".repeat(64)));
    }
}
