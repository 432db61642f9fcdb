use serde_json::json;

use super::bench::{Bench, name};
use crate::life::{PodEvent, ProbeKind, ProbeResult};

fn tcp(more: serde_json::Value) -> serde_json::Value {
    let mut probe = json!({"tcpSocket": {"port": 80}});
    for (key, value) in more.as_object().expect("a map") {
        probe[key] = value.clone();
    }
    probe
}

#[test]
fn a_probe_waits_its_initial_delay_and_then_comes_every_period() {
    let probe = tcp(json!({"initialDelaySeconds": 5, "periodSeconds": 3}));
    let mut bench = Bench::running(json!({"readinessProbe": probe}), "Always");

    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(5)));
    assert_eq!(bench.after_seconds(5).plan(), ["probe c Readiness"]);
    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, None), "one try at a time");
    bench.after_seconds(1).probed(ProbeKind::Readiness, true);

    assert_eq!(bench.wakes_in(), Some(2), "a period from start to start");
    assert_eq!(bench.after_seconds(2).plan(), ["probe c Readiness"]);
}

#[test]
fn readiness_follows_its_thresholds() {
    let probe = tcp(json!({"successThreshold": 2, "failureThreshold": 2}));
    let mut bench = Bench::running(json!({"readinessProbe": probe}), "Always");
    let mut ready = Vec::new();

    for passed in [true, true, false, true, false, false, true, true] {
        assert_eq!(bench.plan(), ["probe c Readiness"]);
        bench.probed(ProbeKind::Readiness, passed);
        ready.push(bench.container("c").ready);
        bench.after_seconds(10);
    }

    assert_eq!(ready, [false, true, true, true, true, false, false, true]);
    assert_eq!(bench.container("c").started, Some(true));
}

#[test]
fn the_startup_probe_gates_the_others() {
    let container = json!({
        "startupProbe": tcp(json!({"failureThreshold": 5})),
        "livenessProbe": tcp(json!({})),
        "readinessProbe": tcp(json!({}))
    });
    let mut bench = Bench::running(container, "Always");

    assert_eq!(bench.plan(), ["probe c Startup"]);
    bench.probed(ProbeKind::Startup, false);
    assert_eq!(bench.after_seconds(10).plan(), ["probe c Startup"]);
    assert_eq!(bench.container("c").started, Some(false));
    bench.probed(ProbeKind::Startup, true);

    assert_eq!(bench.container("c").started, Some(true));
    assert!(!bench.container("c").ready);
    assert_eq!(bench.plan(), ["probe c Liveness", "probe c Readiness"]);
}

#[test]
fn a_failed_startup_probe_restarts_the_container() {
    let mut bench =
        Bench::running(json!({"startupProbe": tcp(json!({"failureThreshold": 1}))}), "Always");
    let _ = (bench.plan(), bench.events());

    bench.probed(ProbeKind::Startup, false);

    assert_eq!(
        bench.events(),
        [
            "Unhealthy: Startup probe failed: no",
            "Killing: Container c failed startup probe, will be restarted"
        ]
    );
    assert_eq!(bench.plan(), ["stop c"]);
}

#[test]
fn a_liveness_failure_stops_with_the_probes_own_grace_and_restarts_with_back_off() {
    let probe = tcp(json!({"failureThreshold": 2, "terminationGracePeriodSeconds": 7}));
    let mut bench = Bench::running(json!({"livenessProbe": probe}), "Always");

    for _ in 0..2 {
        assert_eq!(bench.plan(), ["probe c Liveness"]);
        bench.probed(ProbeKind::Liveness, false);
        bench.after_seconds(10);
    }
    let events = bench.events();
    assert_eq!(
        events.last().unwrap(),
        "Killing: Container c failed liveness probe, will be restarted"
    );
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 2"], "never less than two seconds");
    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, None));
    bench.exited("c", 0, 143);

    bench.run("c");
    assert_eq!(bench.container("c").restart_count, 1);
    assert_eq!(bench.plan(), ["probe c Liveness"], "the new run has probes of its own");
}

#[test]
fn a_liveness_failure_under_never_ends_the_container_for_good() {
    let probe = tcp(json!({"failureThreshold": 1}));
    let mut bench = Bench::running(json!({"livenessProbe": probe}), "Never");
    let _ = (bench.plan(), bench.events());

    bench.probed(ProbeKind::Liveness, false);
    assert_eq!(bench.events().last().unwrap(), "Killing: Container c failed liveness probe");
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 30"]);
    bench.exited("c", 0, 143);

    assert_eq!((bench.phase(), bench.plan()), ("Failed", vec!["tear down".to_owned()]));
}

#[test]
fn a_probe_that_could_not_be_tried_moves_no_threshold() {
    let probe = tcp(json!({"failureThreshold": 1}));
    let mut bench = Bench::running(json!({"livenessProbe": probe}), "Always");
    let _ = (bench.plan(), bench.events());

    let result = ProbeResult::Errored("no runner".to_owned());
    let probe = ProbeKind::Liveness;
    bench.event(PodEvent::ProbeDone { container: name("c"), attempt: 0, probe, result });

    assert_eq!(
        bench.events(),
        ["Unhealthy: Liveness probe errored and resulted in unknown state: no runner"]
    );
    assert_eq!((bench.plan().len(), bench.wakes_in()), (0, Some(10)));
}

#[test]
fn the_answer_of_an_earlier_run_is_dropped() {
    let probe = tcp(json!({"failureThreshold": 1}));
    let mut bench = Bench::running(json!({"livenessProbe": probe}), "Always");
    let _ = bench.plan();
    bench.exited("c", 0, 1);
    bench.run("c");

    let result = ProbeResult::Failed("late".to_owned());
    let probe = ProbeKind::Liveness;
    bench.event(PodEvent::ProbeDone { container: name("c"), attempt: 0, probe, result });

    assert_eq!(bench.plan(), ["probe c Liveness"]);
}
