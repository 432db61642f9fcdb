//! Whole manifests: what is run, what is left, and what is refused in which line.

use super::*;

fn read_as(text: &str, namespace: &str, forced: bool) -> Result<Manifest, String> {
    let mut manifest = Manifest::default();
    let mut suffix = || "abcde".to_owned();
    let mut options = Options { namespace, forced, suffix: &mut suffix };
    read("m.yaml", text, &mut options, &mut manifest).map_err(|bad| bad.to_string())?;
    Ok(manifest)
}

fn manifest(text: &str) -> Manifest {
    read_as(text, "default", false).expect("it is a good manifest")
}

fn refusal(text: &str) -> String {
    read_as(text, "default", false).expect_err(text)
}

fn names(manifest: &Manifest) -> Vec<String> {
    let name = |pod: &ManifestPod| {
        let metadata = &pod.pod.metadata;
        format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or(""),
            metadata.name.as_deref().unwrap_or("")
        )
    };
    manifest.pods.iter().map(name).collect()
}

const SPEC: &str = "spec: {containers: [{name: app, image: x}]}";

fn pod(metadata: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {metadata}\n{SPEC}\n")
}

fn workload(version: &str, kind: &str, more: &str) -> String {
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\nspec:\n  template:\n    metadata: {{labels: {{a: b}}}}\n    \
         spec:\n      containers: [{{name: app, image: x}}]\n{more}"
    )
}

#[test]
fn pods_get_the_default_namespace_and_generated_names() {
    let text = [pod("{name: a}"), pod("{name: b, namespace: shop}"), pod("{generateName: c-}")]
        .join("---\n");

    assert_eq!(names(&manifest(&text)), ["default/a", "shop/b", "default/c-abcde"]);
}

#[test]
fn a_namespace_asked_for_applies_where_none_is_written_and_no_other_may_be() {
    let own = read_as(&pod("{name: a}"), "shop", true).expect("good");
    let same = read_as(&pod("{name: a, namespace: shop}"), "shop", true).expect("good");
    let other = read_as(&pod("{name: a, namespace: x}"), "shop", true).expect_err("refused");

    assert_eq!(names(&own), ["shop/a"]);
    assert_eq!(names(&same), ["shop/a"]);
    assert_eq!(other, "m.yaml:3: metadata.namespace: is x, but -n shop was given");
}

#[test]
fn the_template_of_every_workload_runs_once_and_a_line_says_so() {
    let never = "      restartPolicy: Never\n";
    let table = [
        (workload("apps/v1", "Deployment", "  replicas: 3\n"), "default/web", "replicas"),
        (workload("apps/v1", "ReplicaSet", ""), "default/web", "replicas"),
        (workload("v1", "ReplicationController", ""), "default/web", "replicas"),
        (workload("apps/v1", "StatefulSet", ""), "default/web-0", "replicas"),
        (workload("apps/v1", "DaemonSet", ""), "default/web", "one node"),
        (workload("batch/v1", "Job", never), "default/web", "completions"),
    ];
    for (text, name, why) in table {
        let manifest = manifest(&text);
        assert_eq!(names(&manifest), [name], "{text}");
        assert_eq!(manifest.notes.len(), 1, "{text}");
        assert!(manifest.notes[0].contains("its pod runs once"), "{:?}", manifest.notes);
        assert!(manifest.notes[0].contains(why), "{:?}", manifest.notes);
        let labels = manifest.pods[0].pod.metadata.labels.as_ref().expect("the template's labels");
        assert_eq!(labels["a"], "b");
    }
}

#[test]
fn the_pod_of_a_cron_job_runs_once() {
    let text = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: nightly}\nspec:\n  schedule: '0 0 * * *'\n  jobTemplate:\n    \
                spec:\n      template:\n        spec:\n          restartPolicy: OnFailure\n          containers: [{name: a, image: x}]\n";

    let manifest = manifest(text);

    assert_eq!(names(&manifest), ["default/nightly"]);
    assert!(manifest.notes[0].contains("schedule"), "{:?}", manifest.notes);
    assert_eq!(manifest.pods[0].line_of("spec.containers[0].image").line, 11);
}

#[test]
fn kinds_that_need_a_cluster_are_named_and_left() {
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {anything: 1}\n---\n";
    let foreign = "apiVersion: example.com/v1\nkind: Job\nmetadata: {name: odd}\n---\n";

    let manifest = manifest(&format!("{service}{foreign}{}", pod("{name: a}")));

    assert_eq!(names(&manifest), ["default/a"]);
    let why = "left out, because it means nothing without a cluster";
    assert_eq!(
        manifest.notes,
        [format!("m.yaml:1: Service web: {why}"), format!("m.yaml:6: Job odd: {why}")]
    );
}

#[test]
fn a_list_is_read_item_by_item() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  \
                spec: {containers: [{name: app, image: x}]}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {k: v}}\n";

    let manifest = manifest(text);

    assert_eq!(names(&manifest), ["default/a"]);
    assert_eq!(manifest.config_maps.len(), 1);
    assert_eq!(manifest.pods[0].line_of("spec.containers").line, 7);
}

#[test]
fn json_is_a_manifest_too() {
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"a\"},\n \"spec\": {\"containers\": [{\"name\": \"app\", \"image\": \"x\"}]}}";

    assert_eq!(names(&manifest(text)), ["default/a"]);
}

#[test]
fn a_secret_s_string_data_wins_over_its_data() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nimmutable: true\ntype: Opaque\n\
                data:\n  a: YQ==\n  b: |\n    Ymxv\n    Y2s=\nstringData: {a: plain}\n";

    let manifest = manifest(text);

    let secret = &manifest.secrets[0];
    let data = secret.data.as_ref().expect("data");
    assert_eq!(data["a"].0, b"plain");
    assert_eq!(data["b"].0, b"block");
    assert_eq!(secret.string_data, None);
    assert_eq!(secret.immutable, Some(true));
}

#[test]
fn a_pod_as_kubectl_prints_it_starts_a_new_life() {
    let text =
        pod("{name: a, uid: u, resourceVersion: '7', creationTimestamp: 2026-01-01T00:00:00Z}")
            + "status: {phase: Running}\n";

    let manifest = manifest(&text);

    let pod = &manifest.pods[0].pod;
    assert_eq!((&pod.metadata.uid, &pod.metadata.creation_timestamp), (&None, &None));
    assert_eq!(pod.status, None);
}

#[test]
fn a_field_is_found_again_in_the_text() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      hostPID: true\n      \
                containers:\n      - name: app\n        image: x\n        ports:\n        - containerPort: 80\n          hostPort: 1\n";
    let manifest = manifest(text);
    let pod = &manifest.pods[0];

    let table = [
        ("spec.hostPID", "m.yaml:8"),
        ("spec.containers[0]", "m.yaml:10"),
        ("spec.containers[0].image", "m.yaml:11"),
        ("spec.containers[0].ports[0].hostPort", "m.yaml:14"),
        ("spec.containers[0].ports[0].protocol", "m.yaml:13"),
        ("spec.volumes[2].hostPath", "m.yaml:7"),
        ("metadata.annotations[\"a/b\"]", "m.yaml:6"),
    ];
    for (field, line) in table {
        assert_eq!(pod.line_of(field).to_string(), line, "{field}");
    }
    assert_eq!(pod.path_of("spec.hostPID"), "spec.template.spec.hostPID");
}

#[test]
fn what_is_wrong_with_a_manifest_is_told_with_its_line() {
    let table = [
        (String::new(), "m.yaml:1: there is no object in this manifest"),
        ("# only a comment\n---\n".into(), "no object"),
        ("hello\n".into(), "m.yaml:1: expected an object with apiVersion and kind, found the string \"hello\""),
        ("- a\n".into(), "expected an object with apiVersion and kind, found a list"),
        ("kind: Pod\n".into(), "m.yaml:1: apiVersion: is missing"),
        ("apiVersion: v1\nKind: Pod\n".into(), "m.yaml:1: kind: is missing; is Kind a slip?"),
        ("apiVersion: 1\nkind: Pod\n".into(), "m.yaml:1: apiVersion: expected a string, found the number 1"),
        ("apiVersion: v1\nkind: Pods\n".into(), "m.yaml:2: kind: there is no kind Pods in v1; did you mean Pod?"),
        ("apiVersion: apps/v1\nkind: Deploymnet\n".into(), "did you mean Deployment?"),
        (
            "apiVersion: extensions/v1beta1\nkind: Deployment\n".into(),
            "m.yaml:1: apiVersion: a Deployment is written in apps/v1, found extensions/v1beta1",
        ),
        (format!("apiVersion: v1\nkind: Pod\n{SPEC}\n"), "m.yaml:1: metadata is missing"),
        (pod("{}"), "m.yaml:3: metadata.name: is missing"),
        (pod("{name: My_Pod}"), "m.yaml:3: metadata.name: \"My_Pod\" is no name"),
        (pod("{name: a, namespace: a.b}"), "m.yaml:3: metadata.namespace: \"a.b\" is no namespace"),
        (format!("{}---\n{}", pod("{name: a}"), pod("{name: a}")), "m.yaml:8: metadata.name: Pod default/a is already defined in line 1"),
        (format!("{}---\n{}", workload("apps/v1", "Deployment", ""), pod("{name: web}")), "Pod default/web is already defined in line 1"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".into(), "m.yaml:1: spec is missing"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: []\n".into(),
            "m.yaml:5: spec.containers: a pod needs a container",
        ),
        (workload("batch/v1", "Job", ""), "m.yaml:7: spec.template.spec.restartPolicy: has to be Never or OnFailure in a Job"),
        (
            workload("batch/v1", "Job", "      restartPolicy: Always\n"),
            "m.yaml:9: spec.template.spec.restartPolicy",
        ),
        (
            workload("apps/v1", "Deployment", "  replica: 2\n"),
            "m.yaml:9: spec.replica: unknown field; did you mean replicas?",
        ),
        (
            workload("apps/v1", "StatefulSet", "  volumeClaimTemplates: [{metadata: {name: d}}]\n"),
            "m.yaml:9: spec.volumeClaimTemplates: needs a cluster",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: 1\n".into(),
            "m.yaml:5: data.a: expected a string, found the number 1",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a/b: x\n".into(),
            "m.yaml:5: data: \"a/b\" is no key",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: x}\nbinaryData:\n  a: eA==\n".into(),
            "m.yaml:6: binaryData: a is in data already",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: not base64!\n".into(),
            "m.yaml:5: data.a: this is not base64",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: [x]\n".into(),
            "m.yaml:5: data.a: expected a string, found a list",
        ),
        (
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: {}}}\n", "x".repeat(1_100_000)),
            "m.yaml:1: data: 1100000 bytes, where at most 1048576 are allowed",
        ),
    ];
    for (text, expected) in table {
        let refusal = refusal(&text);
        let shown = &text[..text.len().min(300)];
        assert!(refusal.contains(expected), "{shown}\n-> {refusal}");
    }
}

#[test]
fn the_first_fault_of_the_text_is_the_one_that_is_told() {
    let text = format!("{}---\n{}", pod("{name: a, x: 1}"), pod("{name: Z}"));

    assert_eq!(refusal(&text), "m.yaml:3: metadata.x: unknown field");
}
