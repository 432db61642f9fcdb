use serde_json::{Value, json};

use super::bench::{Bench, name};
use crate::life::PodEvent;

fn images(of: &str) -> Value {
    json!({ "containers": [{ "name": "c", "image": of }] })
}

#[test]
fn another_image_ends_the_container_and_starts_it_anew_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut bench = Bench::running(json!({}), policy);
        assert_eq!(bench.plan(), [""; 0]);
        let _ = bench.events();

        bench.update(images("app:2")).expect("it may change");

        assert_eq!(bench.plan(), ["stop c"], "{policy}");
        assert_eq!(bench.events(), ["Killing: Container c definition changed, will be restarted"]);
        assert_eq!(bench.plan(), [""; 0], "it is told once");
        bench.exited("c", 0, 143);
        bench.run("c");
        assert_eq!((bench.phase(), bench.state("c").as_str()), ("Running", "running"));
        assert_eq!(bench.container("c").restart_count, 1);
        assert_eq!(bench.container("c").image, "app:2");
        assert_eq!(bench.plan(), [""; 0]);
    }
}

#[test]
fn a_run_that_had_ended_for_good_is_not_begun_again_for_another_image() {
    let mut bench = Bench::new(
        json!({ "restartPolicy": "Never", "containers": [{ "name": "c" }, { "name": "d" }] }),
    );
    bench.set_up();
    bench.run("c");
    bench.run("d");
    bench.exited("c", 0, 0);

    let both = json!([{ "name": "c", "image": "app:2" }, { "name": "d", "image": "app:1" }]);
    bench.update(json!({ "containers": both })).expect("it may change");

    assert_eq!(bench.plan(), [""; 0]);
    assert_eq!(bench.state("c"), "Completed");
}

#[test]
fn an_image_that_could_not_be_had_waits_no_longer_once_it_has_another_name() {
    let mut bench = Bench::new(json!({ "containers": [{ "name": "c" }] }));
    bench.set_up();
    assert_eq!(bench.plan(), ["pull c"]);
    for _ in 0..2 {
        bench.event(PodEvent::ImageFailed {
            container: name("c"),
            reason: "ErrImagePull".into(),
            message: "no such tag".into(),
            retry: true,
        });
        bench.after_seconds(20);
        let _ = bench.plan();
    }

    // The last pull is still out, and fails late.
    bench.update(images("app:2")).expect("it may change");
    assert_eq!(bench.plan(), [""; 0]);
    bench.event(PodEvent::ImageFailed {
        container: name("c"),
        reason: "ErrImagePull".into(),
        message: "no such tag".into(),
        retry: true,
    });

    assert_eq!(bench.plan(), ["pull c"], "the new one is asked for at once");
    assert_eq!(bench.state("c"), "ContainerCreating");
}

#[test]
fn an_agent_that_died_behind_the_change_finds_what_is_to_be_replaced() {
    let mut bench = Bench::running(json!({}), "Never");

    bench.update(images("app:2")).expect("it may change");
    bench.restart_agent();
    assert_eq!(bench.plan(), [""; 0], "nothing before the runner was asked");
    bench.started("c", 0);

    assert_eq!(bench.plan(), ["stop c"]);
    bench.restart_agent();
    bench.exited("c", 0, 143);
    bench.run("c");
    assert_eq!(bench.container("c").restart_count, 1);
}

#[test]
fn a_deadline_that_is_set_later_counts_from_the_pod_s_start() {
    let mut bench = Bench::running(json!({}), "Always");
    assert_eq!(bench.wakes_in(), None);
    bench.after_seconds(40);

    let mut spec = images("app:1");
    spec["activeDeadlineSeconds"] = json!(60);
    bench.update(spec).expect("it may change");

    assert_eq!(bench.wakes_in(), Some(20));
    bench.after_seconds(20);
    assert_eq!(bench.plan(), ["stop c"]);
}

#[test]
fn other_containers_are_refused_and_the_pod_stays_as_it_is() {
    let mut bench = Bench::running(json!({}), "Always");

    let wrong = bench.update(json!({ "containers": [{ "name": "d", "image": "app:1" }] }));

    assert_eq!(wrong.expect_err("refused")[0].field, "spec.containers");
    assert_eq!((bench.plan().len(), bench.state("c").as_str()), (0, "running"));
}
