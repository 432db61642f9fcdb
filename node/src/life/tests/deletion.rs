use serde_json::json;

use super::bench::Bench;
use crate::life::{HookKind, PodEvent, ProbeKind};

#[test]
fn a_deleted_pod_stops_its_containers_within_the_grace_and_is_torn_down() {
    let mut bench = Bench::running(json!({}), "Always");
    let _ = bench.events();

    bench.delete(9);
    assert_eq!(bench.events(), ["Killing: Stopping container c"]);
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 9"]);
    assert_eq!(bench.phase(), "Running", "nothing is final while something runs");
    bench.exited("c", 0, 143);

    assert_eq!((bench.phase(), bench.plan()), ("Failed", vec!["tear down".to_owned()]));
    assert_eq!(bench.condition("Ready").status, "False");
    assert!(!bench.life.is_over());
    bench.event(PodEvent::TornDown);
    assert!(bench.life.is_over());
    assert_eq!((bench.plan().len(), bench.wakes_in(), bench.phase()), (0, None, "Failed"));
}

#[test]
fn a_pod_that_never_ran_ends_failed() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);

    bench.delete(30);

    assert_eq!((bench.phase(), bench.plan()), ("Failed", vec!["tear down".to_owned()]));
    bench.image("c");
    assert_eq!(bench.plan(), [""; 0], "a pull that comes too late starts nothing");
}

#[test]
fn a_set_up_under_way_is_waited_for_before_it_is_torn_down() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    assert_eq!(bench.plan(), ["set up"]);

    bench.delete(30);
    assert_eq!(bench.plan(), [""; 0]);
    bench.event(PodEvent::SetUp { ips: Vec::new() });

    assert_eq!(bench.plan(), ["tear down"]);
}

#[test]
fn a_start_under_way_is_stopped_as_soon_as_it_is_there() {
    let mut bench = Bench::new(json!({"containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);

    bench.delete(30);
    assert_eq!(bench.plan(), [""; 0]);
    bench.after_seconds(10).started("c", 0);

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 20"]);
}

#[test]
fn pre_stop_runs_first_and_counts_against_the_grace() {
    let hook = json!({"preStop": {"sleep": {"seconds": 20}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");

    bench.delete(10);
    assert_eq!(bench.plan(), ["hook c PreStop"]);
    bench.after_seconds(4).hooked("c", HookKind::PreStop, Ok(()));

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 6"]);
}

#[test]
fn a_pre_stop_that_outlasts_the_grace_leaves_two_seconds_to_stop() {
    let hook = json!({"preStop": {"sleep": {"seconds": 20}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");

    bench.delete(10);
    assert_eq!(bench.plan(), ["hook c PreStop"]);
    assert_eq!(bench.wakes_in(), Some(10));
    bench.after_seconds(10);

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 2"]);
}

#[test]
fn a_failed_pre_stop_is_told_and_the_stop_goes_on() {
    let hook = json!({"preStop": {"exec": {"command": ["x"]}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");
    bench.delete(10);
    let _ = (bench.plan(), bench.events());

    bench.hooked("c", HookKind::PreStop, Err("exit code 2".to_owned()));

    assert_eq!(bench.events(), ["FailedPreStopHook: PreStopHook failed: exit code 2"]);
    assert_eq!(bench.plan(), ["stop c"]);
}

#[test]
fn a_second_deletion_may_shorten_the_grace_and_never_lengthen_it() {
    let mut bench = Bench::running(json!({}), "Always");

    bench.delete(30);
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 30"]);
    bench.delete(60);
    assert_eq!(bench.plan_with_deadlines(), [""; 0]);
    bench.delete(5);
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 5"]);
    bench.delete(0);

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 0"]);
    assert_eq!(bench.plan_with_deadlines(), [""; 0]);
}

#[test]
fn grace_zero_kills_at_once_and_runs_no_hook() {
    let hook = json!({"preStop": {"sleep": {"seconds": 20}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");

    bench.delete(0);

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 0"]);
}

#[test]
fn sidecars_stop_last_first_after_the_app_containers_and_all_pre_stops_run_at_once() {
    let hook = json!({"preStop": {"exec": {"command": ["x"]}}});
    let mut bench = Bench::new(json!({
        "initContainers": [
            {"name": "s1", "restartPolicy": "Always", "lifecycle": hook},
            {"name": "s2", "restartPolicy": "Always"}
        ],
        "containers": [{"name": "a", "lifecycle": hook}, {"name": "b"}]
    }));
    bench.set_up();
    for container in ["s1", "s2", "a", "b"] {
        bench.run(container);
    }

    bench.delete(30);
    assert_eq!(bench.plan(), ["hook s1 PreStop", "hook a PreStop", "stop b"]);
    bench.exited("b", 0, 0);
    bench.hooked("s1", HookKind::PreStop, Ok(()));
    assert_eq!(bench.plan(), [""; 0]);
    bench.hooked("a", HookKind::PreStop, Ok(()));
    assert_eq!(bench.plan(), ["stop a"]);
    bench.exited("a", 0, 0);
    assert_eq!(bench.plan(), ["stop s2"]);
    bench.exited("s2", 0, 0);
    assert_eq!(bench.plan(), ["stop s1"]);
    bench.exited("s1", 0, 0);

    assert_eq!(bench.plan(), ["tear down"]);
    assert_eq!(bench.phase(), "Succeeded");
}

#[test]
fn when_the_grace_is_spent_every_sidecar_gets_two_seconds() {
    let mut bench = Bench::new(json!({
        "initContainers": [
            {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}
        ],
        "containers": [{"name": "a"}]
    }));
    bench.set_up();
    for container in ["s1", "s2", "a"] {
        bench.run(container);
    }

    bench.delete(10);
    assert_eq!(bench.plan_with_deadlines(), ["stop a in 10"]);
    assert_eq!(bench.wakes_in(), Some(10));
    bench.after_seconds(10);

    assert_eq!(bench.plan_with_deadlines(), ["stop s1 in 2", "stop s2 in 2"]);
}

#[test]
fn readiness_goes_on_while_the_pod_ends_and_the_other_probes_stop() {
    let probe = json!({"tcpSocket": {"port": 80}});
    let container = json!({
        "livenessProbe": probe, "readinessProbe": probe,
        "lifecycle": {"preStop": {"sleep": {"seconds": 25}}}
    });
    let mut bench = Bench::running(container, "Always");
    assert_eq!(bench.plan(), ["probe c Liveness", "probe c Readiness"]);
    bench.probed(ProbeKind::Readiness, true);
    bench.probed(ProbeKind::Liveness, false);

    bench.delete(30);
    assert_eq!(bench.plan(), ["hook c PreStop"]);
    assert!(bench.container("c").ready, "it serves until it is told to stop");
    bench.after_seconds(10);

    assert_eq!(bench.plan(), ["probe c Readiness"]);
}

#[test]
fn a_crash_looping_pod_is_deleted_without_waiting_for_its_back_off() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.exited("c", 0, 1);
    bench.run("c");
    bench.exited("c", 1, 1);

    bench.delete(30);

    assert_eq!(bench.plan(), ["tear down"]);
    let status = bench.container("c");
    assert_eq!(status.state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(status.restart_count, 1);
}
