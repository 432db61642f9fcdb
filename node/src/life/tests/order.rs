use serde_json::json;

use super::bench::{Bench, name};
use crate::life::{HookKind, PodEvent};

#[test]
fn a_pod_is_set_up_then_its_image_is_fetched_then_it_starts() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));

    bench.set_up();
    assert_eq!(bench.condition("PodReadyToStartContainers").status, "True");
    assert_eq!(bench.plan(), ["pull c"]);
    assert_eq!((bench.phase(), bench.state("c").as_str()), ("Pending", "ContainerCreating"));
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);
    bench.started("c", 0);

    assert_eq!(bench.plan(), [""; 0]);
    assert_eq!((bench.phase(), bench.state("c").as_str()), ("Running", "running"));
    let status = bench.container("c");
    assert_eq!((status.ready, status.started, status.restart_count), (true, Some(true), 0));
    assert_eq!(status.image_id, "app@sha256:00");
    assert_eq!(status.container_id.as_deref(), Some("copepod://u-1/c/0"));
    assert_eq!(bench.condition("Ready").status, "True");
    assert_eq!(
        bench.events(),
        [
            "Pulled: Container image \"app:1\" already present on machine and can be accessed by the pod",
            "Created: Container created",
            "Started: Container started"
        ]
    );
}

#[test]
fn a_failed_set_up_is_told_and_tried_again_after_ten_seconds() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));

    assert_eq!(bench.plan(), ["set up"]);
    let (reason, message) = ("FailedMount".to_owned(), "no ConfigMap".to_owned());
    bench.event(PodEvent::SetUpFailed { reason, message });

    assert_eq!(bench.events(), ["FailedMount: no ConfigMap"]);
    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(10)));
    assert_eq!(bench.after_seconds(10).plan(), ["set up"]);
}

fn set_up_failed(reason: &str) -> PodEvent {
    PodEvent::SetUpFailed { reason: reason.to_owned(), message: "no ConfigMap".to_owned() }
}

#[test]
fn a_volume_that_waits_for_an_object_is_tried_again_as_soon_as_objects_change() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    assert_eq!(bench.plan(), ["set up"]);
    bench.event(set_up_failed("FailedMount"));

    assert_eq!(bench.after_seconds(1).plan(), [""; 0]);
    bench.event(PodEvent::ObjectsChanged);

    assert_eq!(bench.plan(), ["set up"]);
}

#[test]
fn objects_that_change_while_a_set_up_looks_at_the_old_ones_are_not_waited_for() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    assert_eq!(bench.plan(), ["set up"]);

    bench.event(PodEvent::ObjectsChanged);
    assert_eq!(bench.plan(), [""; 0], "one set-up at a time");
    bench.event(set_up_failed("FailedMount"));

    assert_eq!(bench.plan(), ["set up"]);
    bench.event(set_up_failed("FailedMount"));
    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(10)), "one try for one change");
}

#[test]
fn objects_do_not_hasten_a_sandbox_that_fails_for_another_reason() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    assert_eq!(bench.plan(), ["set up"]);
    bench.event(set_up_failed("FailedCreatePodSandBox"));

    bench.event(PodEvent::ObjectsChanged);

    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(10)));
}

#[test]
fn init_containers_run_strictly_one_after_the_other() {
    let mut bench = Bench::new(json!({
        "initContainers": [{"name": "first"}, {"name": "second"}],
        "containers": [{"name": "c"}]
    }));

    bench.set_up();
    bench.run("first");
    assert_eq!(bench.plan(), [""; 0]);
    assert_eq!((bench.phase(), bench.state("c").as_str()), ("Pending", "PodInitializing"));
    let message = bench.condition("Initialized").message;
    assert_eq!(message.as_deref(), Some("containers with incomplete status: [first second]"));
    bench.exited("first", 0, 0);
    bench.run("second");
    assert_eq!(bench.plan(), [""; 0]);
    bench.exited("second", 0, 0);
    bench.run("c");

    assert_eq!(bench.phase(), "Running");
    assert_eq!(bench.condition("Initialized").status, "True");
    assert_eq!(
        (bench.state("first").as_str(), bench.container("first").ready),
        ("Completed", true)
    );
}

#[test]
fn a_failing_init_container_is_tried_again_with_back_off_or_fails_the_pod() {
    let spec = |policy: &str| {
        json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "init"}],
            "containers": [{"name": "c"}]
        })
    };
    let mut always = Bench::new(spec("Always"));
    let mut never = Bench::new(spec("Never"));

    for bench in [&mut always, &mut never] {
        bench.set_up();
        bench.run("init");
        bench.exited("init", 0, 3);
    }

    always.run("init");
    always.exited("init", 1, 3);
    assert_eq!((always.state("init").as_str(), always.wakes_in()), ("CrashLoopBackOff", Some(10)));
    assert_eq!(always.phase(), "Pending");
    assert_eq!((never.phase(), never.plan()), ("Failed", vec!["tear down".to_owned()]));
    assert_eq!(never.condition("Initialized").status, "False");
}

#[test]
fn the_container_after_a_sidecar_starts_once_the_sidecar_has_started() {
    let mut bench = Bench::new(json!({
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "init"}
        ],
        "containers": [{"name": "c"}]
    }));

    bench.set_up();
    bench.run("side");
    assert_eq!(bench.plan(), ["probe side Startup"]);
    let (probe, result) = (crate::life::ProbeKind::Startup, crate::life::ProbeResult::Passed);
    bench.event(PodEvent::ProbeDone { container: name("side"), attempt: 0, probe, result });
    bench.run("init");
    bench.exited("init", 0, 0);
    bench.run("c");

    assert_eq!(bench.phase(), "Running");
    assert_eq!(bench.condition("Ready").status, "True");
}

#[test]
fn a_sidecar_restarts_for_ever_also_while_init_containers_run_and_counts_in_ready() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "init"}],
        "containers": [{"name": "c"}]
    }));

    bench.set_up();
    bench.run("side");
    bench.run("init");
    bench.exited("side", 0, 0);
    bench.run("side");
    bench.exited("init", 0, 0);
    bench.run("c");
    assert_eq!(bench.condition("Ready").status, "True");
    bench.exited("side", 1, 9);

    assert_eq!(bench.phase(), "Running");
    assert_eq!(bench.condition("Ready").status, "False");
    let message = bench.condition("ContainersReady").message;
    assert_eq!(message.as_deref(), Some("containers with unready status: [side]"));
    assert_eq!(bench.wakes_in(), Some(10));
}

#[test]
fn a_sidecar_does_not_keep_a_finished_pod_alive() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "c"}]
    }));
    bench.set_up();
    bench.run("side");
    bench.run("c");

    bench.exited("c", 0, 0);

    assert_eq!(bench.phase(), "Running", "nothing is final while something runs");
    assert_eq!(bench.plan(), ["stop side"]);
    bench.exited("side", 0, 143);
    assert_eq!((bench.phase(), bench.plan()), ("Succeeded", vec!["tear down".to_owned()]));
}

#[test]
fn app_containers_start_in_order_but_a_failed_pull_holds_nobody_up() {
    let mut bench = Bench::new(json!({"containers": [{"name": "b"}, {"name": "a"}]}));

    bench.set_up();
    assert_eq!(bench.plan(), ["pull b"]);
    bench.event(PodEvent::ImageFailed {
        container: name("b"),
        reason: "ErrImagePull".to_owned(),
        message: "no".to_owned(),
        retry: true,
    });
    bench.run("a");

    assert_eq!((bench.state("b").as_str(), bench.state("a").as_str()), ("ErrImagePull", "running"));
    assert_eq!(bench.phase(), "Pending", "one container has never run");
    let names: Vec<_> =
        bench.status().container_statuses.unwrap().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_post_start_hook_delays_the_next_container_and_its_own_readiness() {
    let hook = json!({"postStart": {"sleep": {"seconds": 5}}});
    let mut bench =
        Bench::new(json!({"containers": [{"name": "a", "lifecycle": hook}, {"name": "b"}]}));

    bench.set_up();
    bench.run("a");
    assert_eq!(bench.plan(), ["hook a PostStart"]);
    assert_eq!(bench.container("a").started, Some(false));
    assert_eq!(bench.plan(), [""; 0]);
    bench.hooked("a", HookKind::PostStart, Ok(()));

    assert_eq!(bench.container("a").started, Some(true));
    assert_eq!(bench.plan(), ["pull b"]);
}

#[test]
fn a_failed_post_start_hook_ends_the_container_and_it_restarts() {
    let hook = json!({"postStart": {"exec": {"command": ["x"]}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");
    assert_eq!(bench.plan(), ["hook c PostStart"]);
    let _ = bench.events();

    bench.hooked("c", HookKind::PostStart, Err("exit code 1".to_owned()));

    assert_eq!(
        bench.events(),
        ["FailedPostStartHook: PostStartHook failed: exit code 1", "Killing: FailedPostStartHook"]
    );
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 30"]);
    bench.exited("c", 0, 137);
    assert_eq!(bench.plan(), ["pull c"]);
}

#[test]
fn an_image_that_can_never_run_leaves_the_container_waiting_for_good() {
    let mut bench = Bench::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);

    bench.event(PodEvent::ImageFailed {
        container: name("c"),
        reason: "CreateContainerError".to_owned(),
        message: "app:1 is a Linux image".to_owned(),
        retry: false,
    });

    assert_eq!(bench.after_seconds(100_000).plan(), [""; 0]);
    assert_eq!(bench.wakes_in(), None);
    assert_eq!((bench.phase(), bench.state("c").as_str()), ("Pending", "CreateContainerError"));
    let (container, reason, message) = bench.life.can_never_run().unwrap();
    assert_eq!((&**container, reason), ("c", "CreateContainerError"));
    assert_eq!(message, "app:1 is a Linux image");
}

#[test]
fn failed_pulls_back_off_from_ten_seconds_to_five_minutes() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    bench.set_up();
    let mut waits = Vec::new();
    let mut states = Vec::new();

    for _ in 0..7 {
        assert_eq!(bench.plan(), ["pull c"]);
        bench.event(PodEvent::ImageFailed {
            container: name("c"),
            reason: "ErrImagePull".to_owned(),
            message: "refused".to_owned(),
            retry: true,
        });
        let wait = bench.wakes_in().unwrap();
        waits.push(wait);
        states.push(bench.state("c"));
        bench.after_seconds(wait.unsigned_abs());
    }

    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(states[..2], ["ErrImagePull", "ImagePullBackOff"]);
    let message = bench.container("c").state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, "Back-off pulling image \"app:1\": ErrImagePull: refused");
}

fn start_failed(reason: &str) -> PodEvent {
    PodEvent::StartFailed {
        container: name("c"),
        attempt: 0,
        reason: reason.to_owned(),
        message: "there is no ConfigMap".to_owned(),
        retry: true,
    }
}

/// A pod whose one container is being started.
fn starting() -> Bench {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);
    bench
}

#[test]
fn a_container_that_waits_for_a_variable_is_started_as_soon_as_objects_change() {
    let mut bench = starting();
    bench.event(start_failed("CreateContainerConfigError"));

    assert_eq!(bench.after_seconds(1).plan(), [""; 0]);
    bench.event(PodEvent::ObjectsChanged);

    assert_eq!(bench.plan(), ["pull c"]);
}

#[test]
fn objects_that_change_while_a_start_looks_at_the_old_ones_are_not_waited_for() {
    let mut bench = starting();

    bench.event(PodEvent::ObjectsChanged);
    assert_eq!(bench.plan(), [""; 0], "one attempt at a time");
    bench.event(start_failed("CreateContainerConfigError"));

    assert_eq!(bench.plan(), ["pull c"]);
}

#[test]
fn objects_do_not_hasten_a_start_that_fails_for_another_reason() {
    let mut bench = starting();
    bench.event(PodEvent::ObjectsChanged);
    bench.event(start_failed("RunContainerError"));

    bench.event(PodEvent::ObjectsChanged);

    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(10)));
}

#[test]
fn a_container_whose_configuration_is_missing_is_tried_again_under_the_same_number() {
    let mut bench = Bench::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);

    bench.event(PodEvent::StartFailed {
        container: name("c"),
        attempt: 0,
        reason: "CreateContainerConfigError".to_owned(),
        message: "there is no ConfigMap".to_owned(),
        retry: true,
    });

    assert_eq!(
        (bench.state("c").as_str(), bench.wakes_in()),
        ("CreateContainerConfigError", Some(10))
    );
    bench.after_seconds(10);
    assert_eq!(bench.plan(), ["pull c"]);
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);
    assert_eq!(bench.container("c").restart_count, 0);
}
