//! The pod's volumes: names, one source each, names of objects, modes, item paths.
//!
//! Absent: what the objects hold (`crate::volumes`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{KeyToPath, PodSpec, Volume};
use serde_json::Value;

use super::{LABEL, MOST_VOLUMES, Wrong, containers::object_name};
use crate::{
    name::{is_config_key, is_dns_label},
    quantity::Amount,
    volumes::{host_path, item_path},
};

pub(super) fn check(spec: &PodSpec, wrong: &mut Wrong) {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    if volumes.len() > MOST_VOLUMES {
        wrong.add("spec.volumes", format!("a pod has at most {MOST_VOLUMES} volumes"));
        return;
    }
    let mut names = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{i}]");
        let field = format!("{path}.name");
        if !is_dns_label(&volume.name) {
            wrong.add(&*field, format!("{:?} is no name: {LABEL}", volume.name));
        }
        wrong.unique(&field, &volume.name, &mut names);
        check_source(volume, &path, wrong);
    }
}

fn check_source(volume: &Volume, path: &str, wrong: &mut Wrong) {
    // All fields but the name are sources.
    let sources = match serde_json::to_value(volume) {
        Ok(Value::Object(fields)) => fields.len() - 1,
        _ => 0,
    };
    if sources != 1 {
        let found = if sources == 0 { "none is" } else { "more than one is" };
        let message =
            format!("write exactly one of emptyDir, configMap, secret, hostPath; {found} set");
        wrong.add(path, message);
    }
    if let Some(empty) = &volume.empty_dir
        && let Some(limit) = &empty.size_limit
    {
        wrong.check(&format!("{path}.emptyDir.sizeLimit"), Amount::parse(limit));
    }
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        object_name(&source.name, &format!("{path}.name"), wrong);
        check_items(source.items.as_deref(), source.default_mode, &path, wrong);
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        let name = source.secret_name.as_deref().unwrap_or_default();
        object_name(name, &format!("{path}.secretName"), wrong);
        check_items(source.items.as_deref(), source.default_mode, &path, wrong);
    }
    if let Some(host) = &volume.host_path {
        wrong.check(&format!("{path}.hostPath.path"), host_path(&host.path));
    }
}

fn check_items(
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    path: &str,
    wrong: &mut Wrong,
) {
    // 0777 in decimal, as YAML 1.2 and JSON have no octal numbers.
    wrong.within(&format!("{path}.defaultMode"), default_mode, 0..=0o777);
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{i}]");
        if !is_config_key(&item.key) {
            wrong.add(format!("{path}.key"), format!("{:?} can be no key", item.key));
        }
        wrong.check(&format!("{path}.path"), item_path(&item.path));
        wrong.within(&format!("{path}.mode"), item.mode, 0..=0o777);
    }
}
