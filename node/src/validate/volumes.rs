//! The pod's volumes: names, one source each, names of objects, modes, item paths, what is projected.
//!
//! Absent: what the objects hold (`crate::volumes`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PodSpec, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use serde_json::Value;

use super::{
    LABEL, MOST_VOLUMES, Wrong,
    containers::{check_resource_field, object_name},
};
use crate::{
    env::refs,
    name::{is_config_key, is_dns_label},
    quantity::Amount,
    volumes::{SOURCES, host_path, item_path},
};

/// Most sources of one projected volume: far beyond what people write.
const MOST_SOURCES: usize = 512;

/// As the API server: from 10 minutes to 2^32 seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;

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
        check_source(volume, &path, spec, wrong);
    }
}

fn check_source(volume: &Volume, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    // All fields but the name are sources.
    let sources = match serde_json::to_value(volume) {
        Ok(Value::Object(fields)) => fields.len() - 1,
        _ => 0,
    };
    if sources != 1 {
        let found = if sources == 0 { "none is" } else { "more than one is" };
        wrong.add(path, format!("write exactly one of {SOURCES}; {found} set"));
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
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        wrong.within(&format!("{path}.defaultMode"), source.default_mode, MODES);
        check_downward(source.items.as_deref(), &path, spec, wrong);
    }
    if let Some(source) = &volume.projected {
        check_projected(source, &format!("{path}.projected"), spec, wrong);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        let path = format!("{path}.persistentVolumeClaim.claimName");
        object_name(&claim.claim_name, &path, wrong);
    }
    if let Some(host) = &volume.host_path {
        wrong.check(&format!("{path}.hostPath.path"), host_path(&host.path));
    }
}

/// 0777 in decimal, as YAML 1.2 and JSON have no octal numbers.
const MODES: std::ops::RangeInclusive<i32> = 0..=0o777;

/// Each source alone, and no path of an item twice in the volume.
fn check_projected(volume: &ProjectedVolumeSource, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    wrong.within(&format!("{path}.defaultMode"), volume.default_mode, MODES);
    let sources = volume.sources.as_deref().unwrap_or_default();
    if sources.len() > MOST_SOURCES {
        let message = format!("a volume has at most {MOST_SOURCES} sources");
        wrong.add(format!("{path}.sources"), message);
        return;
    }
    let mut paths = BTreeSet::new();
    for (i, source) in sources.iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        check_projection(source, &path, spec, wrong);
        for (field, item) in item_paths(source) {
            // As the API server compares them: by their text.
            if !item.is_empty() && !paths.insert(item) {
                let message = format!("{item:?} is there twice in the volume; write another path");
                wrong.add(format!("{path}.{field}"), message);
            }
        }
    }
}

/// The paths that the source's items name, with their fields. As for the API server, neither keys without items nor a token are among
/// them: of two such files under one path the later is there.
fn item_paths(source: &VolumeProjection) -> Vec<(String, &str)> {
    let config_map = source.config_map.iter().flat_map(|it| it.items.iter().flatten()).enumerate();
    let secret = source.secret.iter().flat_map(|it| it.items.iter().flatten()).enumerate();
    let downward = source.downward_api.iter().flat_map(|it| it.items.iter().flatten()).enumerate();
    config_map
        .map(|(i, it)| (format!("configMap.items[{i}].path"), it.path.as_str()))
        .chain(secret.map(|(i, it)| (format!("secret.items[{i}].path"), it.path.as_str())))
        .chain(downward.map(|(i, it)| (format!("downwardAPI.items[{i}].path"), it.path.as_str())))
        .collect()
}

fn check_projection(source: &VolumeProjection, path: &str, spec: &PodSpec, wrong: &mut Wrong) {
    // All fields are sources.
    let sources = match serde_json::to_value(source) {
        Ok(Value::Object(fields)) => fields.len(),
        _ => 0,
    };
    if sources != 1 {
        let found = if sources == 0 { "none is" } else { "more than one is" };
        let message = format!(
            "write exactly one of configMap, secret, downwardAPI, serviceAccountToken; {found} set"
        );
        wrong.add(path, message);
    }
    if let Some(source) = &source.config_map {
        let path = format!("{path}.configMap");
        object_name(&source.name, &format!("{path}.name"), wrong);
        check_items(source.items.as_deref(), None, &path, wrong);
    }
    if let Some(source) = &source.secret {
        let path = format!("{path}.secret");
        object_name(&source.name, &format!("{path}.name"), wrong);
        check_items(source.items.as_deref(), None, &path, wrong);
    }
    if let Some(source) = &source.downward_api {
        check_downward(source.items.as_deref(), &format!("{path}.downwardAPI"), spec, wrong);
    }
    if let Some(source) = &source.service_account_token {
        check_token(source, &format!("{path}.serviceAccountToken"), wrong);
    }
}

fn check_token(source: &ServiceAccountTokenProjection, path: &str, wrong: &mut Wrong) {
    wrong.check(&format!("{path}.path"), item_path(&source.path));
    let field = format!("{path}.expirationSeconds");
    wrong.within(&field, source.expiration_seconds, TOKEN_SECONDS);
}

fn check_downward(
    items: Option<&[DownwardAPIVolumeFile]>,
    path: &str,
    spec: &PodSpec,
    wrong: &mut Wrong,
) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{i}]");
        wrong.check(&format!("{path}.path"), item_path(&item.path));
        wrong.within(&format!("{path}.mode"), item.mode, MODES);
        if item.field_ref.is_some() == item.resource_field_ref.is_some() {
            wrong.add(&*path, "write either fieldRef or resourceFieldRef");
        }
        if let Some(field) = &item.field_ref
            && !refs::is_volume_field(&field.field_path)
        {
            let message = format!(
                "{:?} is no field for a file; those that are: {}",
                field.field_path,
                refs::VOLUME_FIELDS
            );
            wrong.add(format!("{path}.fieldRef.fieldPath"), message);
        }
        if let Some(resource) = &item.resource_field_ref {
            let path = format!("{path}.resourceFieldRef");
            check_resource_field(resource, &path, spec, wrong);
            if resource.container_name.as_deref().unwrap_or_default().is_empty() {
                let message = "write the container whose resource is meant";
                wrong.add(format!("{path}.containerName"), message);
            }
        }
    }
}

fn check_items(
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    path: &str,
    wrong: &mut Wrong,
) {
    wrong.within(&format!("{path}.defaultMode"), default_mode, MODES);
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{i}]");
        if !is_config_key(&item.key) {
            wrong.add(format!("{path}.key"), format!("{:?} can be no key", item.key));
        }
        wrong.check(&format!("{path}.path"), item_path(&item.path));
        wrong.within(&format!("{path}.mode"), item.mode, MODES);
    }
}
