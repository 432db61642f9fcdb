use serde_json::json;

use super::bench::{Bench, name};
use crate::life::{HookKind, PodEvent, ProbeKind};

#[test]
fn a_running_container_seen_again_goes_on_as_if_nothing_had_been() {
    let mut bench = Bench::running(json!({}), "Never");
    let before = bench.status();

    bench.after_seconds(100).restart_agent();

    assert_eq!(bench.status(), before);
    assert_eq!(bench.life.unconfirmed(), [(name("c"), 0)]);
    assert_eq!(bench.plan(), [""; 0]);
    bench.started("c", 0);
    assert_eq!(bench.life.unconfirmed(), []);
    assert_eq!((bench.plan().len(), bench.status()), (0, before));
}

#[test]
fn an_exit_while_the_agent_was_away_is_an_exit() {
    let mut bench = Bench::running(json!({}), "Never");

    bench.restart_agent();
    bench.exited("c", 0, 3);

    assert_eq!(bench.phase(), "Failed");
    assert_eq!(bench.container("c").state.unwrap().terminated.unwrap().exit_code, 3);
}

#[test]
fn an_attempt_that_no_living_runner_knows_is_sent_again_and_never_a_second_one() {
    let mut bench = Bench::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    bench.set_up();
    let _ = bench.plan();
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);

    bench.restart_agent();
    assert_eq!(bench.plan(), [""; 0], "nothing before the runner was asked");
    bench.event(PodEvent::NotSeen { container: name("c"), attempt: 0 });
    let _ = bench.plan();
    bench.image("c");

    assert_eq!(bench.plan(), ["start c 0"]);
}

#[test]
fn an_attempt_whose_runner_is_dead_may_have_run_and_counts() {
    for (policy, phase) in [("Never", "Failed"), ("Always", "Running")] {
        let mut bench = Bench::new(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
        bench.set_up();
        let _ = bench.plan();
        bench.image("c");
        assert_eq!(bench.plan(), ["start c 0"]);

        bench.restart_agent();
        bench.event(PodEvent::SandboxLost);

        assert_eq!(bench.phase(), phase);
        let status = bench.container("c");
        let ends = [status.state.unwrap().terminated, status.last_state.unwrap().terminated];
        let end = ends.into_iter().flatten().next().unwrap();
        assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    }
}

#[test]
fn after_a_power_cut_what_was_sent_is_not_sent_again_whatever_else_the_cut_took() {
    let readiness = json!({"readinessProbe": {"tcpSocket": {"port": 80}}});
    for (policy, phase) in [("Never", "Failed"), ("Always", "Running")] {
        let mut bench = Bench::running(readiness.clone(), policy);
        assert_eq!(bench.plan(), ["probe c Readiness"]);
        bench.probed(ProbeKind::Readiness, true);
        let kept = bench.journal.iter().rposition(|it| it.fact.outlives_the_machine());
        bench.journal.truncate(kept.expect("an attempt was sent") + 1);

        bench.restart_agent();
        bench.event(PodEvent::SandboxLost);

        assert_eq!(bench.phase(), phase);
        assert_eq!(bench.container("c").restart_count, 0, "the first run was the only one");
        assert!(!bench.plan().contains(&"start c 0".to_owned()));
    }
}

#[test]
fn a_lost_container_is_terminated_and_restarted_as_its_policy_says() {
    let mut bench = Bench::running(json!({}), "Always");

    bench.restart_agent();
    bench.event(PodEvent::Lost { container: name("c"), attempt: 0 });
    bench.run("c");

    assert_eq!(bench.container("c").restart_count, 1);
}

#[test]
fn started_and_ready_hold_until_a_probe_says_otherwise_and_probes_are_spread() {
    let probe = json!({"tcpSocket": {"port": 80}, "failureThreshold": 1});
    let mut bench =
        Bench::running(json!({"readinessProbe": probe, "startupProbe": probe}), "Always");
    let _ = bench.plan();
    bench.probed(ProbeKind::Startup, true);
    let _ = bench.plan();
    bench.probed(ProbeKind::Readiness, true);
    let before = bench.condition("Ready");

    bench.after_seconds(60).restart_agent();
    bench.started("c", 0);

    assert_eq!(bench.condition("Ready"), before);
    assert_eq!(bench.container("c").started, Some(true));
    let wait = bench.wakes_in().unwrap();
    assert!((0..=10).contains(&wait), "within one period, not {wait}");
    assert_eq!(bench.after_seconds(10).plan(), ["probe c Readiness"]);
    bench.probed(ProbeKind::Readiness, false);
    assert!(!bench.container("c").ready);
}

#[test]
fn the_back_off_goes_on_where_it_was() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.exited("c", 0, 1);
    bench.run("c");
    bench.exited("c", 1, 1);

    bench.after_seconds(4).restart_agent();

    assert_eq!((bench.state("c").as_str(), bench.wakes_in()), ("CrashLoopBackOff", Some(6)));
}

#[test]
fn a_deletion_goes_on_with_the_same_deadline() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.delete(30);
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 30"]);

    bench.after_seconds(10).restart_agent();
    assert_eq!(bench.plan(), [""; 0], "nothing before the runner was asked");
    bench.started("c", 0);

    assert_eq!(bench.plan_with_deadlines(), ["stop c in 20"]);
    assert_eq!(bench.plan(), [""; 0]);
    bench.exited("c", 0, 0);
    assert_eq!(bench.plan(), ["tear down"]);
    bench.restart_agent();
    assert_eq!(bench.plan(), ["tear down"], "it may not have arrived");
}

#[test]
fn a_hook_without_an_answer_is_run_again() {
    let hook = json!({"postStart": {"exec": {"command": ["x"]}}});
    let mut bench = Bench::running(json!({"lifecycle": hook}), "Always");
    assert_eq!(bench.plan(), ["hook c PostStart"]);

    bench.restart_agent();
    bench.started("c", 0);
    assert_eq!(bench.plan(), ["hook c PostStart"]);
    bench.hooked("c", HookKind::PostStart, Ok(()));
    bench.restart_agent();
    bench.started("c", 0);

    assert_eq!(bench.plan(), [""; 0], "an answered one is not");
}

#[test]
fn a_stop_that_was_told_is_told_again_also_where_the_pods_end_puts_others_first() {
    let hook = json!({"postStart": {"exec": {"command": ["x"]}}});
    let mut bench = Bench::new(json!({
        "initContainers": [
            {"name": "first", "restartPolicy": "Always"},
            {"name": "side", "restartPolicy": "Always", "lifecycle": hook}
        ],
        "containers": [{"name": "c"}]
    }));
    bench.set_up();
    bench.run("first");
    bench.run("side");
    assert_eq!(bench.plan(), ["hook side PostStart"]);
    bench.hooked("side", HookKind::PostStart, Err("no".to_owned()));
    assert_eq!(bench.plan_with_deadlines(), ["stop side in 30"]);
    bench.exited("first", 0, 1);
    bench.run("first");
    bench.delete(60);
    assert_eq!(bench.plan(), [""; 0]);

    bench.restart_agent();
    bench.started("side", 0);
    bench.started("first", 1);

    assert_eq!(bench.plan_with_deadlines(), ["stop side in 30"]);
}

#[test]
fn a_container_that_crashes_for_weeks_has_a_history_as_short_as_one_that_crashed_once() {
    let mut bench = Bench::running(json!({}), "Always");
    let mut short = Vec::new();
    for attempt in 0..5_000 {
        bench.exited("c", attempt, 7);
        bench.after_seconds(300).run("c");
        short.push(serde_json::to_string(&bench.life.so_far()).unwrap().len());
    }
    bench.exited("c", 5_000, 7);
    let (before, state, wait) = (bench.status(), bench.state("c"), bench.wakes_in());

    bench.journal = bench.life.so_far();
    bench.restart_agent();

    // A number of four digits where there was one of one, and a longer back-off.
    assert!(short[4_999] <= short[0] + 64, "{} and {}", short[0], short[4_999]);
    assert_eq!(bench.journal.len(), 2);
    assert_eq!((bench.status(), bench.state("c"), bench.wakes_in()), (before, state, wait));
    assert_eq!((bench.container("c").restart_count, wait), (5_000, Some(300)));
}
