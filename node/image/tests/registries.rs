//! Pulls from honest and hostile registries on loopback. The numbers are those of the corpus of malicious registries.
//!
//! Absent: compiling, which `compile.rs` tests.

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use copepod_image::{Credentials, Digest, Progress, PullPolicy, Retry};
use support::*;

fn blob(asked: &Asked) -> bool {
    asked.path.contains("/blobs/")
}

fn the_blob_of(wasm: &[u8]) -> String {
    format!("/v2/test/app/blobs/{}", Digest::of(wasm))
}

#[tokio::test]
async fn a_wasm_artifact_is_pulled_by_tag_and_by_digest_and_then_found_in_the_store() {
    let wasm = program("one");
    let registry = Registry::honest(artifact(&wasm)).await;
    let fixture = Fixture::new();

    let first = fixture.pull(&registry.name("test/app:v1")).await.expect("pulled");
    let again = fixture.pull(&registry.name("test/app:v1")).await.expect("cached");
    let by_digest =
        fixture.pull(&registry.name(&format!("test/app@{}", first.digest))).await.expect("pulled");

    assert_eq!(first.wasm, Digest::of(&wasm));
    assert_eq!(first.program, "app.wasm");
    assert_eq!(first.id, registry.name(&format!("test/app@{}", first.digest)));
    assert!(first.pulled && !again.pulled);
    assert_eq!(by_digest.digest, first.digest);
    assert_eq!(registry.count(&the_blob_of(&wasm)), 1, "the layer comes once");
}

#[tokio::test]
async fn the_older_wasm_media_types_are_told_by_their_bytes() {
    for (config, layer) in [
        ("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm"),
        (OCI_CONFIG, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"),
        (OCI_CONFIG, "application/vnd.module.wasm.content.layer.v1+wasm"),
        ("application/vnd.example.config", "application/octet-stream"),
    ] {
        let registry =
            Registry::honest(Content::image((config, "{}"), &[(layer, program("old"))])).await;
        let fixture = Fixture::new();

        let image = fixture.pull(&registry.name("test/app:v1")).await.expect(layer);

        assert_eq!(image.wasm, Digest::of(&program("old")), "{layer}");
    }
}

fn container_layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *bytes).expect("appends");
    }
    tar.into_inner().expect("a tar").finish().expect("a gzip")
}

#[tokio::test]
async fn an_ordinary_container_image_runs_the_wasm_file_of_its_entrypoint() {
    let wasm = program("in a layer");
    let config = r#"{"architecture":"wasm","os":"wasip1","config":{"Entrypoint":["/app/main.wasm","serve"],"Cmd":["--fast"],"Env":["A=1","B=x=y"],"WorkingDir":"/app"}}"#;
    let layer = container_layer(&[("app/main.wasm", &wasm), ("etc/motd", b"hi")]);
    let registry =
        Registry::honest(Content::image((OCI_CONFIG, config), &[(GZIP_LAYER, layer)])).await;
    let fixture = Fixture::new();

    let image = fixture.pull(&registry.name("test/app:v1")).await.expect("pulled");

    assert_eq!(image.wasm, Digest::of(&wasm));
    assert_eq!(image.program, "main.wasm");
    assert_eq!(image.entrypoint, ["/app/main.wasm", "serve"]);
    assert_eq!(image.cmd, ["--fast"]);
    assert_eq!(image.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y".to_owned())]);
    assert_eq!(image.working_dir, "/app");
    let root = image.root.expect("it has more than the program");
    assert_eq!(std::fs::read(root.join("etc/motd")).expect("a file"), b"hi");
    assert_eq!(std::fs::read(root.join("app/main.wasm")).expect("a file"), wasm);
}

#[tokio::test]
async fn a_linux_image_is_told_what_it_is_before_any_layer_is_fetched() {
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/nginx"]}}"#;
    let layer = container_layer(&[("bin/nginx", b"\x7fELF")]);
    let digest = Digest::of(&layer);
    let registry =
        Registry::honest(Content::image((OCI_CONFIG, config), &[(GZIP_LAYER, layer)])).await;
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:v1")).await;

    assert!(
        error.to_string().contains("this is a Linux image (linux/amd64); copepod runs WebAssembly"),
        "{error}"
    );
    assert_eq!((error.reason(), error.retry()), ("ErrImagePull", Retry::WhenChanged));
    assert_eq!(registry.count(digest.as_str()), 0);
}

#[tokio::test]
async fn of_an_index_the_wasm_image_is_pulled_and_the_id_is_the_indexs() {
    let mut content = artifact(&program("chosen"));
    let manifest =
        content.add_manifest((WASM_CONFIG, "{}"), &[("application/wasm", program("chosen"))]);
    let child = Digest::of(&manifest);
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": Digest::of(b"linux"), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": OCI_MANIFEST, "digest": child, "size": manifest.len(), "platform": {"os": "wasi", "architecture": "wasm"}},
    ]})
    .to_string();
    content.put("test/app/manifests/many", OCI_INDEX, index.clone().into_bytes());
    let registry = Registry::honest(content).await;
    let fixture = Fixture::new();

    let image = fixture.pull(&registry.name("test/app:many")).await.expect("pulled");

    assert_eq!(image.digest, child);
    assert!(image.id.ends_with(Digest::of(index.as_bytes()).as_str()));
}

#[tokio::test]
async fn r01_r08_a_manifest_of_another_digest_than_asked_or_announced_is_refused() {
    let other = Digest::of(b"other");
    let mut content = artifact(&program("x"));
    let manifest = content.add_manifest((WASM_CONFIG, "{}"), &[("application/wasm", program("x"))]);
    content.put(&format!("test/app/manifests/{other}"), OCI_MANIFEST, manifest.clone());
    let registry = Registry::start(move |asked| match asked.path.ends_with("/lying") {
        true => Answer::ok(OCI_MANIFEST, manifest.clone())
            .with("docker-content-digest", "sha256:../../nonsense"),
        false => content.answer(asked),
    })
    .await;
    let fixture = Fixture::new();

    let asked = refusal(&fixture, &registry.name(&format!("test/app@{other}"))).await;
    let announced = refusal(&fixture, &registry.name("test/app:lying")).await;

    assert!(asked.to_string().contains("was asked for"), "{asked}");
    assert!(announced.to_string().contains("announced"), "{announced}");
    assert_eq!((asked.reason(), asked.retry()), ("ErrImagePull", Retry::Later));
}

#[tokio::test]
async fn r02_r03_r04_a_layer_of_other_bytes_or_another_length_is_refused_and_removed() {
    let wasm = program("right");
    let same_length = {
        let mut bytes = wasm.clone();
        *bytes.last_mut().expect("bytes") ^= 1;
        bytes
    };
    for (what, body) in [
        ("came with other bytes", Body::Whole(same_length)),
        ("bytes, and", Body::Whole(wasm[..wasm.len() - 1].to_vec())),
        ("bytes, and", Body::Whole([&wasm[..], b"x"].concat())),
        ("longer than", Body::Endless),
        ("broke off", Body::Broken(wasm[..4].to_vec(), wasm.len() as u64)),
    ] {
        let content = artifact(&wasm);
        let path = the_blob_of(&wasm);
        let body = Mutex::new(Some(body));
        let broken = wasm.clone();
        let registry = Registry::start(move |asked| match asked.path == path {
            true => Answer::status(200).body(
                body.lock()
                    .expect("held")
                    .take()
                    .unwrap_or_else(|| Body::Broken(broken[..4].to_vec(), broken.len() as u64)),
            ),
            false => content.answer(asked),
        })
        .await;
        let fixture = Fixture::new();

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert!(error.to_string().contains(what), "{what}: {error}");
        assert_eq!(error.retry(), Retry::Later);
        assert!(
            !fixture
                .folder
                .path()
                .join("images/blobs/sha256")
                .join(Digest::of(&wasm).hex())
                .exists()
        );
    }
}

#[tokio::test]
async fn a_broken_download_is_begun_again_and_then_whole() {
    let wasm = program("twice");
    let content = artifact(&wasm);
    let (path, tries) = (the_blob_of(&wasm), AtomicUsize::new(0));
    let (head, length) = (wasm[..8].to_vec(), wasm.len() as u64);
    let registry = Registry::start(move |asked| {
        if asked.path == path && tries.fetch_add(1, Ordering::SeqCst) == 0 {
            return Answer::status(200).body(Body::Broken(head.clone(), length));
        }
        content.answer(asked)
    })
    .await;
    let fixture = Fixture::new();

    let image = fixture.pull(&registry.name("test/app:v1")).await.expect("pulled");

    assert_eq!(image.wasm, Digest::of(&wasm));
}

#[tokio::test]
async fn r05_a_body_that_drips_is_given_up_by_the_progress_deadline() {
    for manifest_too in [false, true] {
        let content = artifact(&program("slow"));
        let path = the_blob_of(&program("slow"));
        let registry = Registry::start(move |asked| match asked.path == path || manifest_too {
            true => Answer::status(200).body(Body::Dripping),
            false => content.answer(asked),
        })
        .await;
        let mut config = config();
        config.pull.attempts = 1;
        let fixture = Fixture::with(config);

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert!(error.to_string().contains("sent less than"), "{error}");
        assert_eq!(error.reason(), "RegistryUnavailable");
    }
}

#[tokio::test]
async fn r04_r06_a_manifest_is_capped_while_it_is_read() {
    let huge = format!(r#"{{"schemaVersion":2,"annotations":{{"a":"{}"}}}}"#, "x".repeat(5 << 20));
    let deep = "[".repeat(1 << 20);
    for (body, what) in [
        (Body::Endless, "larger than 4 MiB"),
        (Body::Whole(huge.into_bytes()), "larger than 4 MiB"),
        (Body::Whole(deep.into_bytes()), "malformed"),
        (Body::Whole(Vec::new()), "malformed"),
        (Body::Broken(vec![b' '], 10 << 30), "larger than 4 MiB"),
    ] {
        let body = Mutex::new(Some(body));
        let registry = Registry::start(move |_| {
            Answer::status(200)
                .body(body.lock().expect("held").take().unwrap_or(Body::Whole(Vec::new())))
        })
        .await;
        let fixture = Fixture::new();

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_layer_of_ten_gigabytes_by_its_descriptor_is_refused_before_it_is_fetched() {
    let digest = Digest::of(b"ten gigabytes");
    let mut content = artifact(&program("x"));
    let manifest = serde_json::json!({"schemaVersion": 2,
        "config": {"mediaType": WASM_CONFIG, "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": digest, "size": 10u64 << 30}]});
    content.put("test/app/manifests/huge", OCI_MANIFEST, manifest.to_string().into_bytes());
    content.put(&format!("test/app/blobs/{}", Digest::of(b"{}")), "x", b"{}".to_vec());
    let registry = Registry::honest(content).await;
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:huge")).await;

    assert!(
        error
            .to_string()
            .contains("10 GiB, more than the limit of 512 MiB (COPEPOD_MAX_LAYER_BYTES)"),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::WhenChanged);
    assert_eq!(registry.count(digest.as_str()), 0);
}

#[tokio::test]
async fn r07_an_index_that_leads_to_an_index_is_not_followed_further() {
    let inner = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
        .to_string();
    let outer = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": Digest::of(inner.as_bytes()), "size": inner.len(), "platform": {"os": "wasi", "architecture": "wasm"}}]});
    let mut content = Content::default();
    content.put(
        &format!("test/app/manifests/{}", Digest::of(inner.as_bytes())),
        OCI_INDEX,
        inner.into_bytes(),
    );
    content.put("test/app/manifests/v1", OCI_INDEX, outer.to_string().into_bytes());
    let registry = Registry::honest(content).await;
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:v1")).await;

    assert!(error.to_string().contains("another index"), "{error}");
    assert_eq!(registry.asked().len(), 2);
}

#[tokio::test]
async fn r10_no_layer_an_empty_layer_and_several_programs_are_refused() {
    let wasm = |n: &str| ("application/wasm", program(n));
    for (layers, what) in [
        (vec![], "no layer"),
        (vec![("application/wasm", Vec::new())], "the file is empty"),
        (vec![wasm("a"), wasm("b")], "2 wasm layers"),
    ] {
        let registry = Registry::honest(Content::image((WASM_CONFIG, "{}"), &layers)).await;
        let fixture = Fixture::new();

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[tokio::test]
async fn r11_a_gzip_bomb_in_a_container_layer_is_stopped() {
    let zeros = vec![0; 64 << 20];
    let config = r#"{"architecture":"wasm","os":"wasip1","config":{"Entrypoint":["/main.wasm"]}}"#;
    let layer = container_layer(&[("main.wasm", &program("x")), ("zeros", &zeros)]);
    let registry =
        Registry::honest(Content::image((OCI_CONFIG, config), &[(GZIP_LAYER, layer)])).await;
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:v1")).await;

    assert!(error.to_string().contains("decompression bomb"), "{error}");
}

fn challenge(realm: &str) -> Answer {
    Answer::status(401)
        .with("www-authenticate", &format!(r#"Bearer realm="{realm}",service="test""#))
}

#[tokio::test]
async fn r13_r14_a_login_is_never_sent_to_a_realm_elsewhere() {
    let elsewhere = Registry::start(|_| Answer::ok("application/json", r#"{"token":"t"}"#)).await;
    for realm in [
        format!("http://{}/token", elsewhere.address),
        "http://169.254.169.254/token".to_owned(),
        "http://example.invalid/token".to_owned(),
        "https://example.invalid/token".to_owned(),
        "ftp://127.0.0.1/token".to_owned(),
        "http://user@127.0.0.1/token".to_owned(),
        "nonsense".to_owned(),
    ] {
        let shown = realm.clone();
        let registry = Registry::start(move |_| challenge(&realm)).await;
        let fixture = Fixture::new();
        let credentials =
            Credentials::anonymous().with_login(&registry.address.to_string(), "me", "hunter2");

        let error = fixture
            .images
            .resolve(&registry.name("test/app:v1"), PullPolicy::Always, &credentials, &|_| {})
            .await
            .expect_err("refused");

        assert!(!error.to_string().contains("hunter2"));
        assert_eq!(error.reason(), "ErrImagePull", "{shown}: {error}");
    }
    assert_eq!(elsewhere.asked().len(), 0);
}

/// A registry with its own token server, which counts the tokens it gave.
async fn with_tokens(content: Content, answer: &'static str) -> Registry {
    let address: Arc<Mutex<String>> = Arc::default();
    let known = address.clone();
    let registry = Registry::start(move |asked| {
        if asked.path == "/token" {
            return match asked.authorization.as_deref() {
                Some("Basic bWU6aHVudGVyMg==") => Answer::ok("application/json", answer),
                _ => Answer::status(403),
            };
        }
        match asked.authorization.as_deref() {
            Some("Bearer good") => content.answer(asked),
            _ => challenge(&format!("http://{}/token", known.lock().expect("held"))),
        }
    })
    .await;
    *address.lock().expect("held") = registry.address.to_string();
    registry
}

#[tokio::test]
async fn a_private_image_is_pulled_with_one_token_and_only_shown_to_who_has_the_login_again() {
    let registry = with_tokens(artifact(&program("private")), r#"{"token":"good"}"#).await;
    let fixture = Fixture::new();
    let name = registry.name("test/app:v1");
    let mine = Credentials::anonymous().with_login(&registry.address.to_string(), "me", "hunter2");
    let others = Credentials::anonymous().with_login(&registry.address.to_string(), "you", "guess");
    let ask = async |policy, credentials: &Credentials| {
        fixture.images.resolve(&name, policy, credentials, &|_| {}).await
    };

    ask(PullPolicy::IfNotPresent, &mine).await.expect("pulled");
    let tokens = registry.count("/token");
    let asked = registry.asked().len();
    ask(PullPolicy::IfNotPresent, &mine).await.expect("cached");
    ask(PullPolicy::Never, &mine).await.expect("cached");

    assert_eq!(tokens, 1);
    assert_eq!(registry.asked().len(), asked, "the cached image needs no request");
    for stranger in [&others, &Credentials::anonymous()] {
        let error = ask(PullPolicy::IfNotPresent, stranger).await.expect_err("not theirs");
        assert_eq!(error.reason(), "ErrImagePull");
        let error = ask(PullPolicy::Never, stranger).await.expect_err("not theirs");
        assert_eq!(error.reason(), "ErrImageNeverPull");
    }
    let scope = registry.asked().into_iter().find(|it| it.path == "/token").expect("asked").query;
    assert!(
        scope.contains("service=test") && scope.contains("scope=repository%3Atest%2Fapp%3Apull"),
        "{scope}"
    );
}

#[tokio::test]
async fn r15_a_token_call_that_is_redirected_ends_there() {
    let elsewhere = Registry::start(|_| Answer::ok("application/json", r#"{"token":"t"}"#)).await;
    let target = format!("http://{}/steal", elsewhere.address);
    let address: Arc<Mutex<String>> = Arc::default();
    let known = address.clone();
    let registry = Registry::start(move |asked| match asked.path.as_str() {
        "/token" => Answer::status(302).with("location", &target),
        _ => challenge(&format!("http://{}/token", known.lock().expect("held"))),
    })
    .await;
    *address.lock().expect("held") = registry.address.to_string();
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:v1")).await;

    assert!(error.to_string().contains("logins are not carried on"), "{error}");
    assert_eq!(elsewhere.asked().len(), 0);
}

#[tokio::test]
async fn r16_a_blob_redirect_to_a_forbidden_place_in_a_loop_or_too_far_is_refused() {
    let wasm = program("redirected");
    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://example.invalid/plain",
        "file:///etc/passwd",
        "/v2/test/app/blobs/loop",
        "http://0.0.0.0/",
    ] {
        let content = artifact(&wasm);
        let path = the_blob_of(&wasm);
        let registry = Registry::start(move |asked| {
            match asked.path == path || asked.path.ends_with("/loop") {
                true => Answer::status(307).with("location", target),
                false => content.answer(asked),
            }
        })
        .await;
        let fixture = Fixture::new();

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert_eq!(error.reason(), "ErrImagePull", "{target}: {error}");
        assert!(registry.asked().len() < 12, "{target}: {}", registry.asked().len());
    }
}

#[tokio::test]
async fn r16_a_redirect_to_another_host_carries_no_authorization() {
    let wasm = program("stored elsewhere");
    let bytes = wasm.clone();
    let storage = Registry::start(move |_| Answer::ok("x", bytes.clone())).await;
    let (content, path) = (artifact(&wasm), the_blob_of(&wasm));
    let target = format!("http://{}/storage?signature=1", storage.address);
    let registry = Registry::start(move |asked| match asked.authorization {
        None => Answer::status(401).with("www-authenticate", "Basic realm=\"x\""),
        Some(_) if asked.path == path => Answer::status(302).with("location", &target),
        Some(_) => content.answer(asked),
    })
    .await;
    let fixture = Fixture::new();
    let credentials =
        Credentials::anonymous().with_login(&registry.address.to_string(), "me", "hunter2");

    let image = fixture
        .images
        .resolve(&registry.name("test/app:v1"), PullPolicy::Always, &credentials, &|_| {})
        .await
        .expect("pulled");

    assert_eq!(image.wasm, Digest::of(&wasm));
    assert_eq!(storage.asked().len(), 1);
    assert!(storage.asked()[0].authorization.is_none());
}

#[tokio::test]
async fn r17_a_layers_own_urls_are_never_asked() {
    let elsewhere = Registry::start(|_| Answer::ok("x", program("foreign"))).await;
    let mut content = artifact(&program("x"));
    for (tag, media_type) in [
        ("urls", "application/wasm"),
        ("foreign", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    ] {
        let manifest = serde_json::json!({"schemaVersion": 2,
            "config": {"mediaType": WASM_CONFIG, "digest": Digest::of(b"{}"), "size": 2},
            "layers": [{"mediaType": media_type, "digest": Digest::of(&program("foreign")), "size": program("foreign").len(),
                "urls": [format!("http://{}/layer", elsewhere.address)]}]});
        content.put(
            &format!("test/app/manifests/{tag}"),
            OCI_MANIFEST,
            manifest.to_string().into_bytes(),
        );
    }
    content.put(&format!("test/app/blobs/{}", Digest::of(b"{}")), "x", b"{}".to_vec());
    let registry = Registry::honest(content).await;
    let fixture = Fixture::new();

    let urls = refusal(&fixture, &registry.name("test/app:urls")).await;
    let foreign = refusal(&fixture, &registry.name("test/app:foreign")).await;

    assert!(urls.to_string().contains("not found"), "{urls}");
    assert!(foreign.to_string().contains("never fetched"), "{foreign}");
    assert_eq!(elsewhere.asked().len(), 0);
}

#[tokio::test]
async fn r18_a_token_of_a_strange_lifetime_works_and_one_of_a_gigabyte_does_not() {
    for answer in [
        r#"{"token":"good","expires_in":-1}"#,
        r#"{"access_token":"good","expires_in":1000000000000}"#,
        r#"{"token":"good","expires_in":1e308}"#,
        r#"{"token":"good","expires_in":"soon"}"#,
    ] {
        let registry = with_tokens(artifact(&program("t")), answer).await;
        let fixture = Fixture::new();
        let credentials =
            Credentials::anonymous().with_login(&registry.address.to_string(), "me", "hunter2");
        let pulled = fixture
            .images
            .resolve(&registry.name("test/app:v1"), PullPolicy::Always, &credentials, &|_| {})
            .await;
        assert!(pulled.is_ok(), "{answer}: {pulled:?}");
    }
    let address: Arc<Mutex<String>> = Arc::default();
    let known = address.clone();
    let registry = Registry::start(move |asked| match asked.path.as_str() {
        "/token" => Answer::status(200).body(Body::Endless),
        _ => challenge(&format!("http://{}/token", known.lock().expect("held"))),
    })
    .await;
    *address.lock().expect("held") = registry.address.to_string();
    let fixture = Fixture::new();

    let error = refusal(&fixture, &registry.name("test/app:v1")).await;

    assert!(error.to_string().contains("larger than 256 KiB"), "{error}");
}

#[tokio::test]
async fn r19_overload_and_endless_refusals_are_asked_a_bounded_number_of_times() {
    let address: Arc<Mutex<String>> = Arc::default();
    let known = address.clone();
    let unauthorized = Registry::start(move |asked| match asked.path.as_str() {
        "/token" => Answer::ok("application/json", r#"{"token":"never good"}"#),
        _ => challenge(&format!("http://{}/token", known.lock().expect("held"))),
    })
    .await;
    *address.lock().expect("held") = unauthorized.address.to_string();
    let patient = Registry::start(|_| Answer::status(429).with("retry-after", "315360000")).await;
    let storm = Registry::start(|_| Answer::status(503)).await;
    let fixture = Fixture::new();

    let refused = refusal(&fixture, &unauthorized.name("test/app:v1")).await;
    let later = refusal(&fixture, &patient.name("test/app:v1")).await;
    let stormy = refusal(&fixture, &storm.name("test/app:v1")).await;

    assert_eq!((refused.reason(), unauthorized.asked().len()), ("ErrImagePull", 3));
    assert_eq!((later.reason(), patient.asked().len()), ("RegistryUnavailable", 1));
    assert!(later.to_string().contains("315360000 s"), "{later}");
    assert_eq!((stormy.reason(), storm.asked().len()), ("RegistryUnavailable", 3));
    assert_eq!(stormy.retry(), Retry::Later);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let fixture = Fixture::new();

    // Port 1 of the loopback: nothing listens there.
    let error = refusal(&fixture, "127.0.0.1:1/test/app:v1").await;

    assert_eq!(error.reason(), "RegistryUnavailable");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn r20_a_tag_is_resolved_once_and_what_follows_is_asked_by_digest() {
    let first = artifact(&program("first"));
    let second = artifact(&program("second"));
    let moved = AtomicUsize::new(0);
    let registry = Registry::start(move |asked| {
        let content = match asked.path.ends_with("/v1") && moved.fetch_add(1, Ordering::SeqCst) > 0
        {
            true => &second,
            false if asked.path.contains("blobs") => {
                let found = first.answer(asked);
                return if found.status == 200 { found } else { second.answer(asked) };
            }
            false => &first,
        };
        content.answer(asked)
    })
    .await;
    let fixture = Fixture::new();
    let name = registry.name("test/app:v1");

    let image = fixture.pull(&name).await.expect("pulled");
    let tags = registry.count("manifests/v1");
    let moved = fixture
        .images
        .resolve(&name, PullPolicy::Always, &Credentials::anonymous(), &|_| {})
        .await
        .expect("pulled");

    assert_eq!(tags, 1);
    assert_eq!(image.wasm, Digest::of(&program("first")));
    assert_eq!(moved.wasm, Digest::of(&program("second")));
    assert!(moved.pulled);
}

#[tokio::test]
async fn r21_native_code_is_refused_whatever_its_media_type_says() {
    let aot = [&b"\x7fELF\x02\x01\x01"[..], &[0; 5000], b".wasmtime.engine", &[0; 100]].concat();
    for (bytes, what) in [
        (aot, "precompiled"),
        (b"\x7fELF\x02\x01\x01".to_vec(), "Linux program"),
        (b"#!/bin/sh".to_vec(), "not WebAssembly"),
    ] {
        let registry = Registry::honest(artifact(&bytes)).await;
        let fixture = Fixture::new();

        let error = refusal(&fixture, &registry.name("test/app:v1")).await;

        assert!(error.to_string().contains(what), "{what}: {error}");
        assert_eq!(error.retry(), Retry::WhenChanged);
    }
}

#[tokio::test]
async fn r25_many_pods_and_two_registries_bring_one_download_and_the_content_decides() {
    let wasm = program("shared");
    let (honest, path) = (artifact(&wasm), the_blob_of(&wasm));
    let slow = wasm.clone();
    let content = honest.clone();
    let blob_path = path.clone();
    let good = Registry::start(move |asked| match asked.path == blob_path {
        true => Answer::status(200)
            .with("content-length", &slow.len().to_string())
            .body(Body::Slowly(slow.clone())),
        false => content.answer(asked),
    })
    .await;
    let corrupt = Registry::start(move |asked| match asked.path == path {
        true => Answer::ok("x", vec![0; program("shared").len()]),
        false => honest.answer(asked),
    })
    .await;
    let fixture = Fixture::new();

    let names: Vec<String> = (0..20)
        .map(|n| if n % 2 == 0 { good.name("test/app:v1") } else { corrupt.name("test/app:v1") })
        .collect();
    let pulls = futures::future::join_all(names.iter().map(|name| fixture.pull(name))).await;

    // Whoever came after the good download finds it; a corrupt one harms its own pull only.
    assert!(pulls.iter().step_by(2).all(Result::is_ok));
    assert_eq!(
        good.asked().iter().filter(|it| blob(it) && it.path == the_blob_of(&wasm)).count(),
        1
    );
    assert_eq!(fixture.files().0, 0);
}

#[tokio::test]
async fn progress_is_told_and_ends_at_the_whole() {
    let wasm = [program("long"), {
        // A custom section of 3 MiB: id 0, its length and its name in LEB128.
        let length = 3u32 << 20;
        let mut section = vec![0];
        let mut rest = length;
        while rest >= 0x80 {
            section.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        section.push(rest as u8);
        let mut content = vec![0u8; length as usize];
        content[0] = 1;
        content[1] = b'x';
        section.extend(content);
        section
    }]
    .concat();
    let total = wasm.len() as u64;
    let registry = Registry::honest(artifact(&wasm)).await;
    let fixture = Fixture::new();
    let told: Mutex<Vec<Progress>> = Mutex::default();

    fixture
        .images
        .resolve(
            &registry.name("test/app:v1"),
            PullPolicy::IfNotPresent,
            &Credentials::anonymous(),
            &|step| {
                told.lock().expect("held").push(step);
            },
        )
        .await
        .expect("pulled");

    let told = told.into_inner().expect("held");
    assert_eq!(told.first(), Some(&Progress::Resolving));
    assert!(told.len() > 4, "{told:?}");
    assert_eq!(told.last(), Some(&Progress::Pulling { done: total, total }));
}

#[tokio::test]
async fn the_errors_of_policies_and_names_carry_the_kubelets_reasons() {
    let fixture = Fixture::new();
    let ask = async |name: &str, policy| {
        fixture
            .images
            .resolve(name, policy, &Credentials::anonymous(), &|_| {})
            .await
            .expect_err("refused")
    };

    let never = ask("localhost:1/absent:v1", PullPolicy::Never).await;
    let wrong = ask("Not A Name", PullPolicy::Always).await;
    let metadata = ask("169.254.169.254/x/y", PullPolicy::Always).await;

    assert_eq!(
        never.to_string(),
        r#"Container image "localhost:1/absent:v1" is not present with pull policy of Never"#
    );
    assert_eq!((never.reason(), never.retry()), ("ErrImageNeverPull", Retry::Later));
    assert_eq!((wrong.reason(), wrong.retry()), ("InvalidImageName", Retry::WhenChanged));
    assert_eq!(metadata.reason(), "ErrImagePull");
    assert!(metadata.to_string().contains("metadata server"), "{metadata}");
}

/// A registry that takes uploads.
async fn writable() -> Registry {
    let stored: Arc<Mutex<Content>> = Arc::default();
    Registry::start(move |asked| {
        let path = asked.path.trim_start_matches("/v2/").to_owned();
        let mut stored = stored.lock().expect("held");
        match asked.method.as_str() {
            "POST" => Answer::status(202).with("location", "/v2/test/app/blobs/uploads/1?state=x"),
            "PUT" if path.contains("uploads") => {
                let digest =
                    asked.query.split("digest=sha256%3A").nth(1).expect("a digest").to_owned();
                assert_eq!(Digest::of(&asked.body).hex(), digest);
                stored.put(&format!("test/app/blobs/sha256:{digest}"), "x", asked.body.clone());
                Answer::status(201)
            }
            "PUT" => {
                stored.put(&path, OCI_MANIFEST, asked.body.clone());
                Answer::status(201)
            }
            _ => stored.answer(asked),
        }
    })
    .await
}

#[tokio::test]
async fn a_loaded_file_is_pushed_and_pulled_elsewhere_as_the_same_image() {
    let registry = writable().await;
    let here = Fixture::new();
    let there = Fixture::new();
    let file = here.folder.path().join("hello.wasm");
    std::fs::write(&file, program("pushed")).expect("written");
    let name = registry.name("test/app:v2");

    let loaded = here.images.load(&file, &name).expect("loaded");
    let pushed = here.images.push(&name, &Credentials::anonymous(), &|_| {}).await.expect("pushed");
    let again = here.images.push(&name, &Credentials::anonymous(), &|_| {}).await.expect("pushed");
    let pulled = there.pull(&name).await.expect("pulled");

    assert_eq!(loaded.digest, pushed);
    assert_eq!(again, pushed);
    assert_eq!(
        (pulled.digest, pulled.wasm, pulled.program),
        (loaded.digest, loaded.wasm, "hello.wasm".into())
    );
    assert_eq!(
        registry.asked().iter().filter(|it| it.method == "POST").count(),
        2,
        "what is there is not sent again"
    );
}

#[tokio::test]
async fn names_are_given_listed_inspected_and_taken_away() {
    let fixture = Fixture::new();
    let file = fixture.folder.path().join("hello.wasm");
    std::fs::write(&file, program("named")).expect("written");

    fixture.images.load(&file, "hello:v1").expect("loaded");
    fixture.images.tag("hello:v1", "localhost:1/also/hello:v2").expect("named");
    let inspected = fixture.images.inspect("localhost:1/also/hello:v2").expect("there");
    fixture.images.remove("hello:v1").expect("removed");
    let listed = fixture.images.list().expect("listed");

    assert_eq!(inspected.inspection.exports, ["_start"]);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "localhost:1/also/hello:v2");
    assert!(fixture.images.remove("hello:v1").is_err());
    assert!(fixture.images.tag("hello:v1", "x").is_err());
    assert!(fixture.images.load(&file, &format!("a@{}", Digest::of(b""))).is_err());
    std::fs::write(&file, b"\x7fELF").expect("written");
    let refused = fixture.images.load(&file, "hello:v1").expect_err("not wasm").to_string();
    assert!(refused.contains("Linux program"), "{refused}");
}

/// Not a test of its own: the process that `r26` kills.
#[tokio::test]
async fn pulls_until_killed_when_asked_to() {
    let Ok(told) = std::env::var("COPEPOD_TEST_PULL") else { return };
    let (folder, name) = told.split_once('|').expect("folder|name");
    let images = open(std::path::Path::new(folder), config());
    let _ = images.resolve(name, PullPolicy::Always, &Credentials::anonymous(), &|_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r26_a_pull_killed_at_any_moment_leaves_no_half_blob() {
    // 2 MiB in pieces of 16 KiB with pauses: about a second in all, so that each kill falls elsewhere.
    let mut wasm = program("killed");
    wasm.extend(std::iter::repeat_n(0u8, 2 << 20));
    let (content, path, bytes) = (artifact(&wasm), the_blob_of(&wasm), wasm.clone());
    let registry = Registry::start(move |asked| match asked.path == path {
        true => Answer::status(200)
            .with("content-length", &bytes.len().to_string())
            .body(Body::Slowly(bytes.clone())),
        false => content.answer(asked),
    })
    .await;
    let fixture = Fixture::new();
    let name = registry.name("test/app:v1");
    let mut interrupted = 0;

    let mut round = 0;
    // On a busy machine the first children may die before they ask for anything.
    while round < 12 || (interrupted == 0 && round < 100) {
        round += 1;
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "pulls_until_killed_when_asked_to"])
            .env("COPEPOD_TEST_PULL", format!("{}|{name}", fixture.folder.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .expect("a child");
        tokio::time::sleep(std::time::Duration::from_millis(40 * round)).await;
        child.kill().expect("killed");
        child.wait().expect("reaped");
        interrupted += usize::from(fixture.files().0 > 0);

        for entry in
            std::fs::read_dir(fixture.folder.path().join("images/blobs/sha256")).expect("a folder")
        {
            let entry = entry.expect("an entry");
            let found = Digest::of(&std::fs::read(entry.path()).expect("read"));
            assert_eq!(found.hex(), entry.file_name().to_str().expect("hex"), "round {round}");
        }
        open(fixture.folder.path(), config());
        assert_eq!(fixture.files().0, 0, "the next opening clears what round {round} left");
    }

    assert!(interrupted > 0, "at least one kill fell into the download");
    let image = fixture.pull(&name).await.expect("whole at last");
    assert_eq!(image.wasm, Digest::of(&wasm));
}
