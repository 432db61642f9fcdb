//! Domains with real runners on the real kernel: reached, fenced, adopted, and gone without a trace.
//!
//! These tests need root, nft, and the runner built by `cargo build -p copepod-runner` (or named by `COPEPOD_RUNNER`); without either they fail.
//! Each has a data directory, and by its id names of links, cgroup and routes, of its own, and removes them also where it fails.

mod bench;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bench::{Bench, attempts};
use copepod_domain::domain::{Adopted, Limits};
use copepod_domain::explain::{Kind, explain};
use copepod_domain::mounts::Source;
use copepod_domain::netlink::WayTo;
use copepod_domain::{BindMount, Cidr, Host, HostError, Way, WayChange, published};
use rustix::io::Errno;
use rustix::net::connect_unspec;

/// How long something is waited for that should not come. Nothing is concluded from how long something took.
const NOTHING_COMES: Duration = Duration::from_millis(500);

/// The first of the addresses of a pod that comes so late.
fn address_of(host: &Host, offset: u32) -> IpAddr {
    host.pod_cidrs().first().at(offset).expect("it is in the block")
}

/// What a connection to a port answers on which nobody listens: that the packet arrived, and that the way back is there.
fn reached(address: IpAddr) -> bool {
    let target = SocketAddr::from((address, 9));
    let result = TcpStream::connect_timeout(&target, Duration::from_secs(2));
    matches!(result, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_domain_is_reached_at_its_addresses_as_long_as_it_has_them() {
    Bench::run("reached", async |bench| {
        let host = bench.enter();
        let domain = bench.start(&host, "a").await;
        let address = address_of(&host, 10);
        assert!(!reached(address), "nobody has it yet");

        domain.add_addresses(&[address]).await.expect("added");
        domain.add_addresses(&[address]).await.expect("adding again changes nothing");
        assert!(reached(address));

        domain.remove_addresses(&[address]).await.expect("removed");
        domain.remove_addresses(&[address]).await.expect("removing again changes nothing");
        assert!(!reached(address));
    });
}

#[test]
fn a_published_socket_lets_connections_in_and_begins_none() {
    Bench::run("published", async |bench| {
        let _host = bench.enter();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let private = TcpListener::bind(any).expect("a service of the host");
        let private = private.local_addr().expect("bound");
        let turned = |listener: TcpListener| {
            connect_unspec(&listener).expect("the kernel takes a listener back");
            rustix::net::connect(&listener, &private)
        };

        let published = published::open(any).expect("opened");
        let address = published.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("let in");
        let (mut accepted, _) = published.accept().expect("accepted");
        accepted.write_all(b"welcome").expect("written");
        let mut read = [0; 7];
        client.read_exact(&mut read).expect("both ways");

        assert_eq!(turned(published), Err(Errno::CONNREFUSED));
        assert_eq!(turned(TcpListener::bind(any).expect("bound")), Ok(()), "any other socket may");
    });
}

#[test]
fn only_addresses_of_the_block_are_given_to_a_domain() {
    Bench::run("foreign", async |bench| {
        let host = bench.enter();
        let domain = bench.start(&host, "a").await;

        for foreign in ["192.0.2.77", "127.0.0.1", "::1"] {
            let address: IpAddr = foreign.parse().expect("an address");
            let error = domain.add_addresses(&[address]).await.expect_err(foreign);
            assert!(matches!(error, HostError::Invalid(_)), "{error}");
        }
        domain.add_addresses(&host.gateways()).await.expect_err("the node's own");
    });
}

#[test]
fn a_runner_can_neither_start_trace_mount_nor_reach_what_is_not_its_own() {
    Bench::run("fenced", async |bench| {
        let host = bench.enter();
        let neighbour = bench.start(&host, "neighbour").await;
        fs::write(neighbour.root().join("rw/secret"), "theirs").expect("written");
        let attacker = bench.start_attacker(&host, "attacker").await;
        let denied = [libc::EPERM, libc::EACCES];
        let no_such = [libc::ENOENT];

        for what in
            ["exec", "fork", "ptrace", "kill", "mount", "chroot", "unshare", "setuid", "bpf"]
        {
            attempts(&attacker, what).expect_errno(&denied);
        }
        for what in ["raw-socket", "packet-socket", "netlink"] {
            attempts(&attacker, what).expect_errno(&denied);
        }
        // Where only its own tree is `/`, the rest has no name.
        for what in
            ["read:/etc/passwd", "list:/etc", "read:/proc/self/mem", "list:/dev", "list:/sys"]
        {
            attempts(&attacker, what).expect_errno(&no_such);
        }
        let secret = neighbour.root().join("rw/secret");
        attempts(&attacker, &format!("read:{}", secret.display())).expect_errno(&no_such);
        attempts(&attacker, "list:/../../neighbour").expect_errno(&no_such);
        for what in [
            "write:/x",
            "write:/rw/x",
            "write:/ro/x",
            "write:/code/x",
            "write:/logs/x",
            "write:/mnt/x",
        ] {
            attempts(&attacker, what).expect_errno(&[libc::EPERM, libc::EACCES, libc::EROFS]);
        }
        for what in ["write:/state/exits/x", "read:/state/exits/x", "list:/", "list:/rw"] {
            attempts(&attacker, what).expect_allowed();
        }
    });
}

#[test]
fn a_runner_that_forges_another_domains_address_is_not_heard() {
    Bench::run("spoofed", async |bench| {
        let host = bench.enter_with("10.199.1.0/24,fd00:c0de:1::/64");
        let victim = bench.start(&host, "victim").await;
        let attacker = bench.start_attacker(&host, "attacker").await;
        let foreign: [IpAddr; 6] =
            ["192.0.2.2", "8.8.8.8", "2001:db8::2", "fe80::1", "fe80::2", "::1"]
                .map(|it| it.parse().expect("an address"));
        for block in host.pod_cidrs().iter() {
            let of = |offset| block.at(offset).expect("it is in the block");
            let (theirs, own, nobodys) = (of(20), of(21), of(22));
            victim.add_addresses(&[theirs]).await.expect("added");
            attacker.add_addresses(&[own]).await.expect("added");
            let ear = UdpSocket::bind((block.gateway(), 0)).expect("the node's address is there");
            ear.set_read_timeout(Some(NOTHING_COMES)).expect("set");
            let target = ear.local_addr().expect("bound");
            let mut buffer = [0; 64];

            // Its own address is heard: the way is open.
            attempts(&attacker, &format!("spoof:{own}>{target}")).expect_allowed();
            let (_, source) = ear.recv_from(&mut buffer).expect("its own datagram arrives");
            assert_eq!(source.ip(), own);

            // Binding to another's address is not to be prevented inside its own namespace; being heard under it is.
            let forged = [theirs, nobodys, block.gateway()].into_iter();
            let foreign = foreign.into_iter().filter(|it| block.is_of_family_of(*it));
            for forged in forged.chain(foreign) {
                attempts(&attacker, &format!("spoof:{forged}>{target}")).tried();
                let heard = ear.recv_from(&mut buffer);
                assert!(heard.is_err(), "heard under {forged}: {heard:?}");
            }
            let squat = SocketAddr::new(theirs, 80);
            if block.base().is_ipv4() {
                attempts(&attacker, &format!("bind:{squat}")).expect_errno(&[libc::EADDRNOTAVAIL]);
            }
            // Squatting changes nothing for the owner: the host's route leads to the victim.
            attempts(&attacker, &format!("freebind:{squat}")).tried();
            assert!(reached(theirs));
        }
    });
}

#[test]
fn a_domain_does_not_reach_the_nodes_loopback_or_the_link_below() {
    Bench::run("loopback", async |bench| {
        let host = bench.enter_with("10.199.2.0/24,fd00:c0de:2::/64");
        let attacker = bench.start_attacker(&host, "attacker").await;
        for (block, any, loopback, near) in [
            (0, "0.0.0.0", "127.0.0.1", ["169.254.0.1:", "169.254.169.254:"]),
            (1, "[::]", "[::1]", ["[fe80::1%2]:", "[ff02::1%2]:"]),
        ] {
            let block = host.pod_cidrs().iter().nth(block).expect("one of each family");
            let own = block.at(21).expect("it is in the block");
            attacker.add_addresses(&[own]).await.expect("added");
            let ear = std::net::TcpListener::bind(format!("{loopback}:0")).expect("bound");
            let private = ear.local_addr().expect("bound");
            let everywhere = std::net::TcpListener::bind(format!("{any}:0")).expect("bound");
            let open = everywhere.local_addr().expect("bound").port();
            let gateway = SocketAddr::new(block.gateway(), open);

            attempts(&attacker, &format!("spoof-connect:{own}>{gateway}")).expect_allowed();
            attempts(&attacker, &format!("connect:{private}")).expect_refused();
            attempts(&attacker, &format!("spoof-connect:{own}>{private}")).expect_refused();
            for near in near {
                attempts(&attacker, &format!("spoof-connect:{own}>{near}{open}")).expect_refused();
            }
        }
    });
}

#[test]
fn pods_of_two_domains_talk_over_the_host() {
    Bench::run("talk", async |bench| {
        let host = bench.enter_with("fd00:c0de:3::/64,10.199.3.0/24");
        let one = bench.start(&host, "one").await;
        let two = bench.start_attacker(&host, "two").await;
        let all = |offset| host.pod_cidrs().iter().filter_map(move |block| block.at(offset));
        one.add_addresses(&all(30).collect::<Vec<_>>()).await.expect("added");
        two.add_addresses(&all(31).collect::<Vec<_>>()).await.expect("added");
        for (a, b) in all(30).zip(all(31)) {
            let to = |ip| SocketAddr::new(ip, 80);
            // Nobody listens: the refusal is the other domain's own.
            attempts(&two, &format!("spoof-connect:{b}>{}", to(a)))
                .expect_errno(&[libc::ECONNREFUSED]);
            assert!(reached(a) && reached(b));
        }
        for (nobody, b) in all(32).zip(all(31)) {
            attempts(&two, &format!("spoof-connect:{b}>{}", SocketAddr::new(nobody, 80)))
                .expect_errno(&[libc::EHOSTUNREACH, libc::ENETUNREACH]);
        }
    });
}

#[test]
fn a_domain_of_ipv6_alone_is_reached_as_long_as_it_has_its_address_and_its_link_has_none() {
    Bench::run("six", async |bench| {
        let host = bench.enter_with("fd00:c0de:4::/64");
        let before = bench.traces(&host);
        let domain = bench.start_attacker(&host, "a").await;
        let address = address_of(&host, 10);
        assert!(!reached(address), "nobody has it yet");

        domain.add_addresses(&[address]).await.expect("added");
        domain.add_addresses(&[address]).await.expect("adding again changes nothing");
        assert!(reached(address));
        let things = explain(host.data(), copepod_domain::nft::Nft::find(None).as_ref());
        let told: Vec<String> = things.expect("looked").into_iter().map(|it| it.name).collect();
        assert!(
            told.iter().any(|it| it.starts_with("1 addresses of fd00:c0de:4::/64")),
            "{told:?}"
        );
        let links = World::ip("-6 -o addr show");
        let own = links.lines().filter(|line| line.contains(&host.id().link_prefix())).count();
        assert_eq!(own, 0, "{links}");
        domain.remove_addresses(&[address]).await.expect("removed");
        assert!(!reached(address));

        host.remove_domain(domain.id()).await.expect("removed");
        assert_eq!(bench.traces(&host), before);
        host.reset().await.expect("undone");
        let left = World::ip("-6 route show table all");
        assert!(!left.contains("fd00:c0de:4:"), "{left}");
    });
}

#[test]
fn what_runs_with_ipv4_alone_goes_on_so_where_the_node_is_given_both_families_later() {
    let first = async |bench: &Bench| {
        let host = bench.enter_with("10.199.6.0/24");
        let domain = bench.start(&host, "a").await;
        let address = address_of(&host, 10);
        domain.add_addresses(&[address]).await.expect("added");
        (domain.id().clone(), address)
    };
    Bench::run_two("second-family", first, async |bench, (id, address)| {
        let next = bench.enter_with("10.199.6.0/24,fd00:c0de:6::/64");

        let adopted = next.adopt_domain(&id).await.expect("looked for");
        assert!(matches!(adopted, Adopted::Alive(_)) && reached(address));
        assert_eq!(next.pod_cidrs().to_string(), "10.199.6.0/24");
    });
}

#[test]
fn ipv6_without_nft_is_refused_with_the_reason_and_leaves_nothing() {
    Bench::run("six-no-nft", async |bench| {
        let mut config = bench.config();
        config.pod_cidrs = Some("10.199.5.0/24,fd00:c0de:5::/64".parse().expect("blocks"));
        config.nft = Some("/nowhere/nft".into());

        let error = Host::enter(config).expect_err("refused").to_string();

        assert!(error.contains("nftables") && error.contains("IPv6 address"), "{error}");
        assert!(!World::ip("route show table all").contains("10.199.5."));
    });
}

#[test]
fn what_is_mounted_later_is_seen_by_the_runner_as_it_was_meant() {
    Bench::run("mounts", async |bench| {
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let outside = bench.scratch("outside");
        fs::write(outside.join("file"), "hello").expect("written");
        fs::set_permissions(&outside, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("set");
        let from = |path: &str| Source::Beneath { root: outside.clone(), path: path.into() };
        let mount = |source, target: &str, read_only| BindMount {
            source,
            target: target.into(),
            read_only,
            idmap: false,
        };

        domain.mount(mount(from(""), "mnt/u/0", false)).await.expect("mounted");
        domain.mount(mount(from(""), "mnt/u/1", true)).await.expect("mounted");
        domain.mount(mount(from("file"), "/ro/u/single", true)).await.expect("mounted");
        domain.mount_tmpfs(Path::new("rw/t"), 64 << 10).await.expect("mounted");

        for what in ["read:/mnt/u/0/file", "read:/mnt/u/1/file", "read:/ro/u/single"] {
            attempts(&domain, what).expect_allowed();
        }
        attempts(&domain, "write:/mnt/u/0/new").expect_allowed();
        attempts(&domain, "write:/mnt/u/1/new").expect_errno(&[libc::EROFS]);
        attempts(&domain, "write:/rw/t/new").expect_allowed();
        assert!(outside.join("new").exists());

        for target in ["mnt/u/0", "mnt/u/1", "ro/u/single", "rw/t"] {
            domain.unmount(Path::new(target)).await.expect("unmounted");
            domain.unmount(Path::new(target)).await.expect("again: nothing to do");
            assert!(!domain.root().join(target).exists(), "{target}");
        }
        attempts(&domain, "read:/mnt/u/0/file").expect_errno(&[libc::ENOENT]);
    });
}

#[test]
fn files_of_the_disks_root_are_the_domains_under_an_owner_map() {
    Bench::run("idmap", async |bench| {
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let outside = bench.scratch("outside");
        fs::write(outside.join("private"), "0600").expect("written");
        let private: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(outside.join("private"), private).expect("set");
        let mount = |target: &str, idmap| BindMount {
            source: Source::Beneath { root: outside.clone(), path: "".into() },
            target: target.into(),
            read_only: false,
            idmap,
        };

        domain.mount(mount("mnt/mapped", true)).await.expect("mounted");
        domain.mount(mount("mnt/plain", false)).await.expect("mounted");

        attempts(&domain, "read:/mnt/mapped/private").expect_allowed();
        attempts(&domain, "write:/mnt/mapped/new").expect_allowed();
        attempts(&domain, "read:/mnt/plain/private").expect_errno(&[libc::EACCES]);
        let status = fs::metadata(outside.join("new")).expect("there");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&status), 0, "written as the disk's root");
    });
}

#[test]
fn a_source_behind_a_link_or_outside_its_root_is_not_mounted() {
    Bench::run("links", async |bench| {
        let host = bench.enter();
        let domain = bench.start(&host, "a").await;
        let outside = bench.scratch("outside");
        fs::create_dir(outside.join("dir")).expect("made");
        std::os::unix::fs::symlink("/etc", outside.join("link")).expect("linked");
        std::os::unix::fs::symlink("dir", outside.join("inner")).expect("linked");

        for path in ["link", "inner", "link/passwd", "../outside/dir", "/etc", "dir/../../.."] {
            let mount = BindMount {
                source: Source::Beneath { root: outside.clone(), path: path.into() },
                target: "mnt/x".into(),
                read_only: true,
                idmap: false,
            };
            domain.mount(mount).await.expect_err(path);
        }
        // A runner that puts a link where a mount is to go does not lead it elsewhere.
        std::os::unix::fs::symlink("/etc", domain.root().join("rw/trap")).expect("linked");
        for target in ["rw/trap/x", "rw/trap", "../x", "/", ""] {
            domain.mount_tmpfs(Path::new(target), 4096).await.expect_err(target);
        }
    });
}

#[test]
fn a_removed_domain_leaves_nothing_behind() {
    Bench::run("removed", async |bench| {
        let host = bench.enter();
        let before = bench.traces(&host);
        let domain = bench.start(&host, "a").await;
        let address = address_of(&host, 10);
        domain.add_addresses(&[address]).await.expect("added");
        domain.mount_tmpfs(Path::new("rw/t"), 1 << 20).await.expect("mounted");
        let pid = domain.pid();
        let outside = bench.scratch("outside");
        fs::write(outside.join("canary"), "alive").expect("written");
        let mount = BindMount {
            source: Source::Beneath { root: outside.clone(), path: "".into() },
            target: "mnt/u/0".into(),
            read_only: false,
            idmap: false,
        };
        domain.mount(mount).await.expect("mounted");
        assert_ne!(bench.traces(&host), before, "a living domain leaves traces");

        host.remove_domain(domain.id()).await.expect("removed");
        host.remove_domain(domain.id()).await.expect("removing again changes nothing");

        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(bench.traces(&host), before);
        assert_eq!(host.existing_domains().expect("listed"), []);
        assert_eq!(fs::read_to_string(outside.join("canary")).expect("there"), "alive");
    });
}

#[test]
fn a_runner_outlives_its_agent_and_the_next_agent_takes_it_over() {
    let first = async |bench: &Bench| {
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let address = address_of(&host, 10);
        domain.add_addresses(&[address]).await.expect("added");
        (domain.id().clone(), domain.pid(), domain.uid(), host.pod_cidrs().first(), address)
    };
    Bench::run_two("adopted", first, async |bench, (id, pid, uid, block, address)| {
        let next = bench.enter();
        let Adopted::Alive(domain) = next.adopt_domain(&id).await.expect("looked for") else {
            panic!("the runner lives");
        };

        assert_eq!((domain.pid(), domain.uid(), next.pod_cidrs().first()), (pid, uid, block));
        assert!(reached(address), "its address was kept");
        let another = address_of(&next, 11);
        domain.add_addresses(&[another]).await.expect("added");
        assert!(reached(another));
        domain.mount_tmpfs(Path::new("rw/t"), 4096).await.expect("mounted");
        attempts(&domain, "write:/rw/t/new").expect_allowed();
        let again = next.start_domain(bench.spec("a", &[])).await.expect_err("it runs");
        assert!(matches!(again, HostError::Invalid(_)), "{again}");
    });
}

#[test]
fn a_runner_that_died_is_noticed_and_its_successor_inherits_user_and_files() {
    Bench::run("died", async |bench| {
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let id = domain.id().clone();
        attempts(&domain, "write:/state/exits/record").expect_allowed();

        rustix::process::pidfd_send_signal(domain.pidfd(), rustix::process::Signal::KILL)
            .expect("killed");
        domain.ended().await.expect("noticed");

        assert!(matches!(host.adopt_domain(&id).await.expect("looked for"), Adopted::Dead));
        assert_eq!(host.existing_domains().expect("listed"), std::slice::from_ref(&id));
        let successor = bench.start_attacker(&host, "a").await;
        assert_ne!(successor.pid(), domain.pid());
        assert_eq!(successor.uid(), domain.uid());
        attempts(&successor, "read:/state/exits/record").expect_allowed();
        let address = address_of(&host, 10);
        successor.add_addresses(&[address]).await.expect("added");
        assert!(reached(address));
    });
}

#[test]
fn a_removed_domains_user_comes_back_as_late_as_possible() {
    Bench::run("users", async |bench| {
        let host = bench.enter();
        let first = bench.start(&host, "a").await;

        host.remove_domain(first.id()).await.expect("removed");
        let second = bench.start(&host, "a").await;

        assert_ne!(second.uid(), first.uid());
    });
}

#[test]
fn a_process_that_merely_has_the_runners_number_is_not_killed() {
    Bench::run("recycled", async |bench| {
        let host = bench.enter();
        let domain = bench.start(&host, "a").await;
        let mut bystander =
            std::process::Command::new("sleep").arg("60").spawn().expect("sleep is there");
        host.remove_domain(domain.id()).await.expect("removed");
        let directory = host.data().join("domains/a");
        fs::create_dir(&directory).expect("made");
        let record = format!(
            "{{\"index\":77,\"uid\":{},\"own_network\":true,\"runner\":{{\"pid\":{},\"started\":1,\"boot\":\"{}\",\
             \"program\":\"/bin/sleep\"}}}}",
            host.id().first_uid() + 77,
            bystander.id(),
            fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read").trim(),
        );
        fs::write(directory.join("runner.json"), record).expect("written");

        let adopted = host.adopt_domain(domain.id()).await.expect("looked for");
        host.remove_domain(domain.id()).await.expect("removed");
        let alive = bystander.try_wait().expect("asked").is_none();
        bystander.kill().expect("ended");
        bystander.wait().expect("reaped");

        assert!(matches!(adopted, Adopted::Dead));
        assert!(alive, "the bystander lives");
    });
}

#[test]
fn the_kernel_holds_a_domain_to_its_memory_and_its_threads() {
    Bench::run("limits", async |bench| {
        let host = bench.enter();
        let mut spec = bench.spec("a", &[]);
        spec.limits = Limits { memory: Some(64 << 20), threads: Some(16) };

        let domain = host.start_domain(spec).await.expect("started");
        domain.set_memory_max(Some(96 << 20)).await.expect("raised");
        domain.set_memory_max(Some(48 << 20)).await.expect("lowered");

        let usage = domain.usage().expect("read");
        assert!(usage.memory > 0 && usage.memory < 48 << 20, "{usage:?}");
    });
}

#[test]
fn two_data_directories_live_side_by_side() {
    Bench::run("side-one", async |one| {
        let host = one.enter();
        let domain = one.start(&host, "same").await;
        let address = address_of(&host, 10);
        domain.add_addresses(&[address]).await.expect("added");
        let block = host.pod_cidrs().first();

        let other_block = Bench::run("side-two", async |two| {
            let other = two.enter();
            let domain = two.start(&other, "same").await;
            let address = address_of(&other, 10);
            domain.add_addresses(&[address]).await.expect("added");
            assert!(reached(address));
            other.pod_cidrs().first()
        });

        assert!(!block.overlaps(other_block));
        assert!(reached(address), "the other's reset left this one alone");
    });
}

#[test]
fn a_configured_block_that_is_in_use_is_refused() {
    Bench::run("occupied", async |one| {
        let host = one.enter();
        let taken = host.pod_cidrs().first();

        Bench::run("occupied-two", async |two| {
            let mut config = two.config();
            config.pod_cidrs = Some(taken.into());
            let error = copepod_domain::Host::enter(config).expect_err("it is taken");
            assert!(error.to_string().contains(&taken.to_string()), "{error}");
        });
    });
}

#[test]
fn a_reset_undoes_what_was_done_to_the_machine() {
    Bench::run("reset", async |bench| {
        let host = bench.enter();
        bench.start(&host, "a").await;
        bench.start(&host, "b").await;
        let (id, data) = (host.id(), host.data().to_owned());
        let nft = copepod_domain::nft::Nft::find(None);
        let present = || {
            let things = explain(&data, nft.as_ref()).expect("looked");
            let there = things.into_iter().filter(|thing| thing.present);
            there.map(|thing| (thing.kind, thing.name)).collect::<Vec<_>>()
        };
        let of = |kind: Kind| present().into_iter().filter(|it| it.0 == kind).count();
        // The pinned mount is seen from outside of it only.
        let kinds = [Kind::Link, Kind::Address, Kind::Route, Kind::Cgroup];
        assert_eq!(kinds.map(|kind| of(kind) > 0), [true; 4], "{:?}", present());
        assert_eq!(of(Kind::Link), 2, "one for each domain");

        host.reset().await.expect("undone");

        bench.assert_no_trace(id);
        assert_eq!(kinds.map(of), [0; 4], "{:?}", present());
        assert_eq!((of(Kind::Rule), of(Kind::Nftables)), (0, 0));
    });
}

#[test]
fn a_program_that_is_no_runner_is_reported_with_its_last_words() {
    Bench::run("no-runner", async |bench| {
        let host = bench.enter();
        let before = bench.traces(&host);
        let mut spec = bench.spec("a", &["-c", "echo I am no runner >&2"]);
        spec.program = "/bin/sh".into();

        let error = host.start_domain(spec).await.expect_err("it is no runner");

        assert!(error.to_string().contains("I am no runner"), "{error}");
        assert_eq!(bench.traces(&host), before, "nothing is left of the attempt");
    });
}

#[test]
fn the_block_of_a_deleted_data_directory_is_free_again() {
    Bench::run("orphan", async |bench| {
        let file = Path::new("/run/copepod/blocks");
        let host = bench.enter();
        let block = host.pod_cidrs().first();
        let owner = file.join(block.to_string().replace('/', "-"));
        let text = fs::read_to_string(&owner).expect("the owner is written down");
        // As if the directory had been deleted: it is looked for under another name.
        fs::write(&owner, text.replace("/data\"", "/gone\"")).expect("written");

        Bench::run("orphan-heir", async |heir| {
            let mut config = heir.config();
            config.pod_cidrs = Some(block.into());
            let heir = copepod_domain::Host::enter(config).expect("the block is free");
            assert_eq!(heir.pod_cidrs().first(), block);
            heir.reset().await.expect("undone");
        });
    });
}

#[test]
fn with_nft_pods_reach_the_world_under_the_nodes_address() {
    let nft = copepod_domain::nft::Nft::find(None);
    assert!(nft.is_some(), "this test needs nft: {}", copepod_domain::nft::REMEDY);
    Bench::run("egress", async |bench| {
        let world = World::make();
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let own = address_of(&host, 21);
        domain.add_addresses(&[own]).await.expect("added");

        let seen = world.peer_of(|target| {
            attempts(&domain, &format!("spoof-connect:{own}>{target}")).expect_allowed();
        });

        assert_eq!(seen, IpAddr::from(World::NODE));
    });
}

#[test]
fn another_node_s_pods_are_reached_without_nat_and_the_way_goes_with_its_data_directory() {
    let nft = copepod_domain::nft::Nft::find(None);
    assert!(nft.is_some(), "this test needs nft: {}", copepod_domain::nft::REMEDY);
    Bench::run("ways", async |bench| {
        let world = World::make();
        let host = bench.enter();
        let domain = bench.start_attacker(&host, "a").await;
        let own = address_of(&host, 21);
        domain.add_addresses(&[own]).await.expect("added");
        world.is_a_node(host.pod_cidrs().first());
        let seen =
            host.surroundings(vec![World::HOST.into(), World::NODE.into()]).await.expect("looked");
        let Some(&WayTo::Neighbour(link)) = seen.reach.get(&World::HOST.into()) else {
            panic!("it is on the link: {seen:?}")
        };
        assert_eq!(seen.reach.get(&World::NODE.into()), Some(&WayTo::Own));
        let block = Cidr::around(World::POD.into(), 24);
        let way = Way { block, gateway: World::HOST.into(), link };
        let peer = || {
            world.peer_of_pod(|target| {
                attempts(&domain, &format!("spoof-connect:{own}>{target}")).expect_allowed();
            })
        };

        let failed = host.change_ways(vec![WayChange::Set(way)]).await.expect("asked");
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(peer(), IpAddr::from(World::NODE), "nobody has said that these are pods");
        host.set_direct(vec![block]).await.expect("set");
        assert_eq!(peer(), own, "no NAT");
        let again = host.change_ways(vec![WayChange::Set(way)]).await.expect("asked");
        assert!(again.is_empty(), "{again:?}");

        let ours = async |host: &Host| host.surroundings(Vec::new()).await.expect("looked").ours;
        let only = std::collections::BTreeSet::from([way]);
        Bench::run("ways-two", async |two| {
            let other = two.enter();
            assert!(ours(&other).await.is_empty(), "another directory's are not its own");
            assert!(!other.surroundings(Vec::new()).await.expect("looked").others.contains(&block));
            other.change_ways(vec![WayChange::Set(way)]).await.expect("asked");
            assert_eq!(ours(&other).await, only);
            other.reset().await.expect("undone");
        });
        assert_eq!(ours(&host).await, only, "the other's reset left this one's alone");

        host.set_direct(Vec::new()).await.expect("set");
        assert_eq!(peer(), IpAddr::from(World::NODE));
        host.reset().await.expect("undone");
        assert_eq!(World::routes_to(block), "", "no route is left");
    });
}

#[test]
fn a_way_of_somebody_else_is_seen_and_neither_replaced_nor_removed() {
    Bench::run("foreign-way", async |bench| {
        let world = World::make();
        let host = bench.enter();
        let block = Cidr::around(World::POD.into(), 24);
        world.is_a_node(host.pod_cidrs().first());
        let theirs = format!("route add {block} via {} metric 100", World::HOST);
        World::ip(&theirs);

        let seen = host.surroundings(vec![World::HOST.into()]).await.expect("looked");
        assert!(seen.others.contains(&block), "{seen:?}");
        let Some(&WayTo::Neighbour(link)) = seen.reach.get(&World::HOST.into()) else {
            panic!("it is on the link: {seen:?}")
        };
        // What the plan never asks for does no harm either.
        let way = Way { block, gateway: World::HOST.into(), link };
        let changes = vec![WayChange::Set(way), WayChange::Remove(way)];
        let failed = host.change_ways(changes).await.expect("asked");
        assert!(failed.is_empty(), "{failed:?}");
        host.reset().await.expect("undone");

        assert!(World::routes_to(block).contains("metric 100"), "theirs is there");
    });
}

/// A network beyond the node: a namespace with one link to this one, gone with the test.
struct World {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// A pod of the world's, where that is a node.
    const POD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    fn make() -> Self {
        // One at a time: they have the same addresses.
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let world = Self { name: format!("cpworld{}", std::process::id()), _turn: turn };
        let name = &world.name;
        for command in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name up netns {name}"),
            format!("addr add {}/24 dev {name}", Self::NODE),
            format!("link set dev {name} up"),
            format!("-n {name} addr add {}/24 dev up", Self::HOST),
            format!("-n {name} link set dev up up"),
        ] {
            Self::ip(&command);
        }
        // The node's way into the world is the link of its default route; this is another one.
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1").expect("written");
        world
    }

    fn ip(command: &str) -> String {
        let done = std::process::Command::new("ip").args(command.split(' ')).output();
        let done = done.expect("these tests need iproute2's ip");
        assert!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Has a pod in the world, and a way back from there to this machine's.
    fn is_a_node(&self, pods: Cidr) {
        Self::ip(&format!("-n {} addr add {}/32 dev lo", self.name, Self::POD));
        Self::ip(&format!("-n {} link set dev lo up", self.name));
        Self::ip(&format!("-n {} route add {pods} via {}", self.name, Self::NODE));
    }

    fn routes_to(block: Cidr) -> String {
        Self::ip(&format!("route show {block}"))
    }

    /// Who connects to a listener in the world, as it sees them.
    fn peer_of(&self, connect: impl FnOnce(SocketAddr)) -> IpAddr {
        self.peer_at(Self::HOST, connect)
    }

    /// Who connects to its pod.
    fn peer_of_pod(&self, connect: impl FnOnce(SocketAddr)) -> IpAddr {
        self.peer_at(Self::POD, connect)
    }

    fn peer_at(&self, address: Ipv4Addr, connect: impl FnOnce(SocketAddr)) -> IpAddr {
        let namespace = fs::File::open(format!("/run/netns/{}", self.name)).expect("opened");
        let listener = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("entered");
            std::net::TcpListener::bind((address, 0)).expect("bound")
        });
        let listener = listener.join().expect("bound");
        connect(listener.local_addr().expect("bound"));
        listener.accept().expect("connected").1.ip()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", &self.name]).status();
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
