use serde_json::json;

use super::bench::{Bench, name};
use crate::life::{ExitReason, ExitRecord, PodEvent};

#[test]
fn each_policy_restarts_after_what_it_says() {
    for (policy, code, restarts, phase) in [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ] {
        let mut bench = Bench::running(json!({}), policy);

        bench.exited("c", 0, code);

        let next = if restarts { "pull c" } else { "tear down" };
        assert_eq!(
            (bench.phase(), bench.plan()),
            (phase, vec![next.to_owned()]),
            "{policy} {code}"
        );
    }
}

#[test]
fn a_crashing_container_backs_off_and_says_so() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.exited("c", 0, 1);
    bench.run("c");
    let _ = bench.events();

    bench.exited("c", 1, 1);

    assert_eq!((bench.phase(), bench.plan().len(), bench.wakes_in()), ("Running", 0, Some(10)));
    let status = bench.container("c");
    let waiting = status.state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=c pod=p_ns(u-1)")
    );
    assert_eq!(status.restart_count, 1);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(
        bench.events(),
        ["BackOff: Back-off restarting failed container c in pod p_ns(u-1)"]
    );
    bench.after_seconds(10);
    bench.run("c");
    bench.exited("c", 2, 1);
    assert_eq!(bench.wakes_in(), Some(20));
}

#[test]
fn ten_minutes_without_a_crash_forget_the_back_off() {
    let mut bench = Bench::running(json!({}), "Always");
    bench.exited("c", 0, 1);
    bench.run("c");

    bench.after_seconds(601);
    bench.exited("c", 1, 1);

    assert_eq!(bench.plan(), ["pull c"]);
}

#[test]
fn what_is_reported_of_an_end_follows_from_its_record() {
    for (code, reason, word) in [
        (0, ExitReason::Ended, "Completed"),
        (3, ExitReason::Ended, "Error"),
        (137, ExitReason::OutOfMemory, "OOMKilled"),
        (137, ExitReason::Lost, "ContainerStatusUnknown"),
    ] {
        let mut bench = Bench::running(json!({}), "Never");
        let exit = ExitRecord {
            code,
            reason,
            message: "x".repeat(5000),
            started_at: Some(bench.now),
            finished_at: bench.now,
        };

        bench.event(PodEvent::Exited { container: name("c"), attempt: 0, exit });

        let terminated = bench.container("c").state.unwrap().terminated.unwrap();
        assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (code, Some(word)));
        assert_eq!(terminated.message.map(|message| message.len()), Some(4096));
    }
}

#[test]
fn a_pod_is_done_only_when_all_its_containers_are() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]
    }));
    bench.set_up();
    bench.run("a");
    bench.run("b");

    bench.exited("a", 0, 1);
    assert_eq!((bench.phase(), bench.plan().len()), ("Running", 0));
    bench.exited("b", 0, 0);

    assert_eq!(bench.phase(), "Failed");
    assert_eq!(bench.condition("Ready").reason.as_deref(), Some("PodFailed"));
}

#[test]
fn an_exit_may_come_before_the_word_that_it_started() {
    let mut bench = Bench::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);
    bench.image("c");
    assert_eq!(bench.plan(), ["start c 0"]);

    bench.exited("c", 0, 0);
    bench.started("c", 0);

    assert_eq!((bench.phase(), bench.plan()), ("Succeeded", vec!["tear down".to_owned()]));
}

#[test]
fn a_dead_runner_costs_a_restart_and_a_new_sandbox_in_which_init_containers_run_again() {
    let mut bench = Bench::new(json!({
        "initContainers": [{"name": "init"}], "containers": [{"name": "c"}]
    }));
    bench.set_up();
    bench.run("init");
    bench.exited("init", 0, 0);
    bench.run("c");

    bench.event(PodEvent::SandboxLost);

    assert_eq!(bench.phase(), "Running");
    assert_eq!(bench.condition("PodReadyToStartContainers").status, "False");
    assert_eq!(bench.condition("Initialized").status, "True", "once true it stays so");
    let last = bench.container("c").last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    bench.set_up();
    bench.run("init");
    bench.exited("init", 1, 0);
    bench.run("c");
    assert_eq!(bench.container("c").restart_count, 1);
    assert_eq!(bench.container("init").restart_count, 1);
}

#[test]
fn a_dead_runner_ends_a_pod_that_may_not_run_twice() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "init"}],
        "containers": [{"name": "c"}]
    }));
    bench.set_up();
    bench.run("init");
    bench.exited("init", 0, 0);
    assert_eq!(bench.plan(), ["pull c"]);

    bench.event(PodEvent::SandboxLost);

    assert_eq!((bench.phase(), bench.plan()), ("Failed", vec!["tear down".to_owned()]));
    assert_eq!(bench.state("c"), "ContainerStatusUnknown");
}

#[test]
fn a_pod_past_its_active_deadline_is_stopped_and_failed() {
    let mut bench = Bench::new(json!({
        "activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 5, "containers": [{"name": "c"}]
    }));
    bench.set_up();
    bench.run("c");
    assert_eq!(bench.wakes_in(), Some(60));
    let _ = bench.events();

    bench.after_seconds(60);
    assert_eq!(bench.plan_with_deadlines(), ["stop c in 5"]);
    bench.exited("c", 0, 0);

    let status = bench.status();
    assert_eq!((bench.phase(), status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    assert_eq!(
        bench.events(),
        [
            "DeadlineExceeded: Pod was active on the node longer than the specified deadline",
            "Killing: Stopping container c"
        ]
    );
}

#[test]
fn conditions_carry_the_time_of_their_last_flip_and_the_generation_seen() {
    let mut bench = Bench::running(json!({}), "Always");
    let ready = bench.condition("Ready");

    bench.after_seconds(5);
    bench.event(PodEvent::Pulling { container: name("c") });
    assert_eq!(bench.condition("Ready"), ready);
    bench.exited("c", 0, 1);

    let unready = bench.condition("Ready");
    assert_eq!(unready.last_transition_time.unwrap().0, bench.now);
    assert_eq!(unready.observed_generation, Some(7));
    let order: Vec<_> = bench.status().conditions.unwrap().into_iter().map(|c| c.type_).collect();
    assert_eq!(
        order,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
    let status = bench.status();
    assert_eq!(status.pod_ip.as_deref(), Some("10.64.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_container_s_own_policy_and_rules_go_before_the_pod_s() {
    let rule = |operator: &str| json!([{ "action": "Restart", "exitCodes": { "operator": operator, "values": [42, 43] } }]);
    for (pod, own, rules, code, restarts) in [
        ("Never", "Always", json!(null), 0, true),
        ("Always", "Never", json!(null), 1, false),
        ("Always", "OnFailure", json!(null), 0, false),
        ("Never", "Never", rule("In"), 42, true),
        ("Never", "Never", rule("In"), 1, false),
        ("Never", "Never", rule("NotIn"), 1, true),
        ("Never", "OnFailure", rule("In"), 1, true),
    ] {
        let spec = json!({ "restartPolicy": pod, "containers": [
            { "name": "c", "restartPolicy": own, "restartPolicyRules": rules }, { "name": "d" },
        ] });
        let mut bench = Bench::new(spec);
        bench.set_up();
        bench.run("c");
        bench.run("d");

        bench.exited("c", 0, code);

        let next = if restarts { vec!["pull c".to_owned()] } else { Vec::new() };
        assert_eq!((bench.phase(), bench.plan()), ("Running", next), "{pod} {own} {rules} {code}");
    }
}

#[test]
fn rules_that_make_no_sense_are_refused_by_their_path() {
    for (container, field) in [
        (
            json!({ "restartPolicyRules": [{ "action": "Restart", "exitCodes": { "operator": "In", "values": [1] } }] }),
            "spec.containers[0].restartPolicyRules",
        ),
        (
            json!({ "restartPolicy": "Never", "restartPolicyRules": [{ "action": "Restart" }] }),
            "spec.containers[0].restartPolicyRules[0].exitCodes",
        ),
        (
            json!({ "restartPolicy": "Never", "restartPolicyRules": [{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [1] } }] }),
            "spec.containers[0].restartPolicyRules[0].action",
        ),
        (
            json!({ "restartPolicy": "Never", "restartPolicyRules": [{ "action": "Restart", "exitCodes": { "operator": "Not", "values": [1] } }] }),
            "spec.containers[0].restartPolicyRules[0].exitCodes.operator",
        ),
    ] {
        let mut container = container;
        (container["name"], container["image"]) = (json!("c"), json!("app:1"));
        let pod = super::bench::pod(json!({ "containers": [container] }));

        let wrong =
            crate::life::PodLife::admit(pod, &Default::default(), jiff::Timestamp::UNIX_EPOCH);

        let fields: Vec<String> =
            wrong.expect_err("refused").into_iter().map(|it| it.field).collect();
        assert_eq!(fields, [field]);
    }
}

#[test]
fn an_init_container_that_succeeded_is_done_whatever_its_rules() {
    let rules =
        json!([{ "action": "Restart", "exitCodes": { "operator": "NotIn", "values": [42] } }]);
    let init = json!({ "name": "i", "restartPolicy": "Never", "restartPolicyRules": rules });
    let mut bench =
        Bench::new(json!({ "initContainers": [init], "containers": [{ "name": "c" }] }));
    bench.set_up();
    bench.run("i");

    bench.exited("i", 0, 1);
    bench.after_seconds(10);
    bench.run("i");
    bench.exited("i", 1, 0);

    assert_eq!(bench.plan(), ["pull c"]);
}
