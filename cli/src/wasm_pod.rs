//! The pod that `copepod run app.wasm` stands for: pure.
//!
//! Absent: loading the file into the image store, and looking at the host's paths.

use std::path::PathBuf;

use copepod_shim::kind::Kind;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HostPathVolumeSource, Pod, PodSpec, ResourceRequirements,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What the command line says, with paths and variables already looked up.
#[derive(Clone, Debug)]
pub(crate) struct WasmPod {
    /// The pod's and the container's name.
    pub(crate) name: String,
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The image's name in the local store.
    pub(crate) image: String,
    /// What the file is.
    pub(crate) kind: Kind,
    /// The program's arguments.
    pub(crate) args: Vec<String>,
    /// Environment variables.
    pub(crate) env: Vec<(String, String)>,
    /// Host path, guest path, read-only.
    pub(crate) volumes: Vec<(PathBuf, String, bool)>,
    /// The pod's ports that are published.
    pub(crate) ports: Vec<u16>,
    /// `limits.memory`.
    pub(crate) memory: Option<String>,
    /// `limits.cpu`.
    pub(crate) cpu: Option<String>,
}

impl WasmPod {
    /// The pod.
    pub(crate) fn into_pod(self) -> Pod {
        let mut ports = self.ports;
        ports.sort_unstable();
        ports.dedup();
        let limits = [("memory", self.memory), ("cpu", self.cpu)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), Quantity(value?))));
        let limits = limits.collect();
        let name_of = |index: usize| format!("volume-{index}");
        let mounts = self.volumes.iter().enumerate().map(|(index, (_, guest, ro))| VolumeMount {
            name: name_of(index),
            mount_path: guest.clone(),
            read_only: Some(*ro),
            ..VolumeMount::default()
        });
        let container = Container {
            name: self.name.clone(),
            image: Some(self.image),
            // The file was just put into the store; no registry knows the name.
            image_pull_policy: Some("Never".into()),
            args: Some(self.args),
            env: Some(
                self.env
                    .into_iter()
                    .map(|(name, value)| EnvVar { name, value: Some(value), value_from: None })
                    .collect(),
            ),
            ports: Some(
                ports
                    .into_iter()
                    .map(|port| ContainerPort {
                        container_port: i32::from(port),
                        ..ContainerPort::default()
                    })
                    .collect(),
            ),
            volume_mounts: Some(mounts.collect()),
            resources: Some(ResourceRequirements {
                limits: Some(limits),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        };
        // A server is there until it is stopped; a command runs once and its code is ours.
        let restart = if self.kind == Kind::HttpComponent { "Always" } else { "Never" };
        let volumes = self.volumes.into_iter().enumerate().map(|(index, (host, _, _))| Volume {
            name: name_of(index),
            host_path: Some(HostPathVolumeSource {
                path: host.to_string_lossy().into_owned(),
                type_: None,
            }),
            ..Volume::default()
        });
        Pod {
            metadata: ObjectMeta {
                name: Some(self.name),
                namespace: Some(self.namespace),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![container],
                restart_policy: Some(restart.into()),
                volumes: Some(volumes.collect()),
                ..PodSpec::default()
            }),
            status: None,
        }
    }
}

/// A pod's name from a file's: `My_App.v1.wasm` is `my-app-v1`.
pub(crate) fn name_of(file: &str) -> String {
    let stem = file.rsplit('/').next().unwrap_or(file);
    let stem = stem.strip_suffix(".wasm").unwrap_or(stem);
    let mut name = String::new();
    for c in stem.to_ascii_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    // A container's name has at most 63 characters.
    name.truncate(63);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "app".into() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_name_becomes_a_pod_s() {
        let long = "x".repeat(80);
        let table = [
            ("app.wasm", "app"),
            ("./target/My_App.v1.wasm", "my-app-v1"),
            ("_a__b_.wasm", "a-b"),
            ("é.wasm", "app"),
            (&long, &long[..63]),
        ];
        for (file, expected) in table {
            assert_eq!(name_of(file), expected);
            assert!(crate::manifest::is_label(&name_of(file)));
        }
    }

    #[test]
    fn the_command_line_s_wishes_stand_in_the_pod() {
        let wishes = WasmPod {
            name: "app".into(),
            namespace: "default".into(),
            image: "local/app:1".into(),
            kind: Kind::CommandComponent,
            args: vec!["-v".into()],
            env: vec![("A".into(), "1".into())],
            volumes: vec![("/in".into(), "/data".into(), true)],
            ports: vec![8080, 8080],
            memory: Some("64Mi".into()),
            cpu: None,
        };

        let server = WasmPod { kind: Kind::HttpComponent, ..wishes.clone() }.into_pod();
        let spec = wishes.into_pod().spec.expect("a spec");

        let container = &spec.containers[0];
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(server.spec.expect("a spec").restart_policy.as_deref(), Some("Always"));
        assert_eq!(container.args.as_deref(), Some(&["-v".to_owned()][..]));
        assert_eq!(container.ports.as_ref().map(Vec::len), Some(1));
        let limits = container.resources.as_ref().and_then(|it| it.limits.as_ref());
        assert_eq!(limits.map(|it| it["memory"].0.as_str()), Some("64Mi"));
        let mount = &container.volume_mounts.as_ref().expect("a mount")[0];
        assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/data", Some(true)));
        let volume = &spec.volumes.as_ref().expect("a volume")[0];
        assert_eq!(volume.host_path.as_ref().map(|it| it.path.as_str()), Some("/in"));
        assert_eq!(volume.name, mount.name);
    }
}
