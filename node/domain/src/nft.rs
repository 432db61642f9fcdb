//! The second judge, and the way out: one nftables table per data directory, written by the host's `nft` program.
//!
//! It looks at a packet's link and source, never at a single pod, so a pod costs it nothing. Absent: ports of the machine that
//! lead to pods (`ports`), Service addresses (resolved in the runner) and NetworkPolicy.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cidr::{Blocks, Cidr, largest};
use crate::error::{HostError, Step};
use crate::names::DataId;
use crate::published;

/// The variable that names the program where it is not on the path.
pub const VARIABLE: &str = "COPEPOD_NFT";

/// What the rules need of a family.
struct Family {
    /// Its packets, as `nft` names them.
    packets: &'static str,
    /// Its addresses in a set.
    addresses: &'static str,
    /// The set of blocks that are not masqueraded.
    direct: &'static str,
    /// Loopback and link-local addresses.
    near: &'static str,
    /// Those, and groups.
    unroutable: &'static str,
}

const IPV4: Family = Family {
    packets: "ip",
    addresses: "ipv4_addr",
    direct: "direct",
    near: "127.0.0.0/8, 169.254.0.0/16",
    unroutable: "127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4",
};

const IPV6: Family = Family {
    packets: "ip6",
    addresses: "ipv6_addr",
    direct: "direct6",
    // Groups too: on every link a daemon may listen to some.
    near: "::1, fe80::/10, ff00::/8",
    unroutable: "::1, fe80::/10, ff00::/8",
};

fn family(block: Cidr) -> Family {
    if block.base().is_ipv4() { IPV4 } else { IPV6 }
}

/// How to get the program, for messages.
pub const REMEDY: &str =
    "install nftables (Debian: apt install nftables), or name the program in COPEPOD_NFT";

/// The program of this host.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whose table.
    pub id: DataId,
    /// The pods' addresses.
    pub blocks: Blocks,
    /// Whether pods reach the world beyond the node, under the node's address.
    pub masquerade: bool,
    /// Blocks beside the pods' own that pods reach under their own addresses.
    pub exceptions: Vec<Cidr>,
    /// TCP ports of the node that no pod reaches (the kubelet's).
    pub denied_ports: Vec<u16>,
}

impl Rules {
    fn table(&self) -> String {
        self.id.table()
    }

    /// The blocks of the family of this one of the pods' that are not masqueraded, with commas between. None lies in another: the
    /// kernel's set would not take that.
    fn direct(&self, own: Cidr) -> String {
        let all = self.exceptions.iter().copied().chain([own]);
        let all = largest(all.filter(|block| block.is_of_family_of(own.base())));
        all.iter().map(Cidr::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Other exceptions in `nft`'s language, as one transaction that leaves the chains as they are: every packet meets the set before it
    /// or the set after it. None where nothing is masqueraded.
    pub fn other_exceptions(&self) -> Option<String> {
        let table = self.table();
        let each = |block: Cidr| {
            let (set, direct) = (family(block).direct, self.direct(block));
            format!("flush set inet {table} {set}\nadd element inet {table} {set} {{ {direct} }}\n")
        };
        self.masquerade.then(|| self.blocks.iter().map(each).collect())
    }

    /// The table in `nft`'s language; loading it replaces the one that is there, as one transaction.
    pub fn text(&self) -> String {
        let table = self.table();
        let links = format!("\"{}*\"", self.id.link_prefix());
        let ports: Vec<_> = self.denied_ports.iter().map(u16::to_string).collect();
        let denied = if ports.is_empty() {
            String::new()
        } else {
            format!("    iifname {links} tcp dport {{ {} }} drop\n", ports.join(", "))
        };
        // What is not from a pod's address, of whatever family.
        let own: String = self
            .blocks
            .iter()
            .map(|block| format!("{} saddr != {block}", family(block).packets))
            .chain(self.absent().map(|family| format!("meta nfproto {family}")))
            .map(|packets| format!("    iifname {links} {packets} drop\n"))
            .collect();
        let never = |what: fn(&Family) -> &'static str| -> String {
            let to = |block: Cidr| {
                let family = family(block);
                let (packets, unreached) = (family.packets, what(&family));
                format!("    iifname {links} {packets} daddr {{ {unreached} }} drop\n")
            };
            self.blocks.iter().map(to).collect()
        };
        let (unroutable, near) = (never(|it| it.unroutable), never(|it| it.near));
        let way_out = if self.masquerade { self.way_out(&links) } else { String::new() };
        let owner = published::OWNER;
        // Spoofing: the way back to the source must be the link on which the packet came. `{links}` ends in a wildcard.
        format!(
            "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n  \
             chain forward {{\n    type filter hook forward priority filter; policy accept;\n\
             {own}    iifname {links} fib saddr . iif oif missing drop\n{unroutable}  }}\n  \
             chain input {{\n    type filter hook input priority filter; policy accept;\n\
             {own}    iifname {links} fib saddr . iif oif missing drop\n{near}{denied}  }}\n  \
             chain output {{\n    type filter hook output priority filter; policy accept;\n    \
             meta skuid {owner} ct state new reject\n  }}\n{way_out}}}\n"
        )
    }

    /// The family, as `nft` names it, of which pods have no addresses.
    fn absent(&self) -> impl Iterator<Item = &'static str> {
        let of = |v4: bool| self.blocks.iter().any(|block| block.base().is_ipv4() == v4);
        [("ipv4", of(true)), ("ipv6", of(false))]
            .into_iter()
            .filter_map(|(family, there)| (!there).then_some(family))
    }

    fn way_out(&self, links: &str) -> String {
        let (mut sets, mut chain) = (String::new(), String::new());
        for block in self.blocks.iter() {
            let Family { packets, addresses, direct, .. } = family(block);
            sets += &format!(
                "  set {direct} {{\n    type {addresses}\n    flags interval\n    elements = {{ {} }}\n  }}\n",
                self.direct(block)
            );
            chain += &format!(
                "    {packets} saddr {block} {packets} daddr != @{direct} oifname != {links} masquerade\n"
            );
        }
        format!(
            "{sets}  chain out {{\n    type nat hook postrouting priority srcnat; policy accept;\n{chain}  }}\n"
        )
    }
}

impl Nft {
    /// The named program, else the one of [`VARIABLE`], else the one on the path; none where there is none.
    pub fn find(named: Option<&Path>) -> Option<Self> {
        let named = named.map(Path::to_owned).or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        let program = match named {
            Some(program) => Some(program),
            None => {
                let path = env::var_os("PATH").unwrap_or_default();
                // An agent's path often lacks the administrator's folders.
                let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
                env::split_paths(&path)
                    .chain(more)
                    .map(|folder| folder.join("nft"))
                    .find(|p| p.is_file())
            }
        };
        program.filter(|program| program.is_file()).map(|program| Self { program })
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Loads the table.
    ///
    /// # Errors
    /// The program's words.
    pub fn load(&self, rules: &Rules) -> Result<(), HostError> {
        self.run(&["-f", "-"], &rules.text()).step(|| format!("load the table {}", rules.table()))
    }

    /// Has the loaded table go on with the rules' exceptions.
    ///
    /// # Errors
    /// The program's words.
    pub fn set_exceptions(&self, rules: &Rules) -> Result<(), HostError> {
        let Some(text) = rules.other_exceptions() else { return Ok(()) };
        self.run(&["-f", "-"], &text)
            .step(|| format!("set the blocks of {} that are not masqueraded", rules.table()))
    }

    /// The chains and sets of a table, as `nft` names them; none where there is no table.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn parts(&self, table: &str) -> io::Result<Option<Vec<String>>> {
        let output = Command::new(&self.program)
            .args(["list", "table", "inet", table])
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let part = |line: &str| {
            let name = line.trim().strip_suffix(" {")?;
            (name.starts_with("chain ") || name.starts_with("set ")).then(|| name.to_owned())
        };
        Ok(Some(text.lines().filter_map(part).collect()))
    }

    /// Removes the table; also one that is not there.
    ///
    /// # Errors
    /// The program's words.
    pub fn remove(&self, id: DataId) -> Result<(), HostError> {
        let table = id.table();
        let text = format!("add table inet {table}\ndelete table inet {table}\n");
        self.run(&["-f", "-"], &text).step(|| format!("remove the table {table}"))
    }

    /// The program's version, which shows that it runs.
    ///
    /// # Errors
    /// The program's words.
    pub fn version(&self) -> io::Result<String> {
        let output = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output()?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }

    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> io::Result<()> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that ended already tells why in its own words.
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            id: DataId::new(0x00c0_ffee),
            blocks: "10.64.64.0/18".parse().expect("a block"),
            masquerade: true,
            exceptions: vec!["192.168.0.0/16".parse().expect("a block")],
            denied_ports: vec![10250],
        }
    }

    #[test]
    fn the_table_names_the_data_directory_and_nothing_of_another() {
        let text = rules().text();

        assert!(text.contains("table inet copepod-00c0ffee {"));
        assert!(text.contains("iifname \"cp00c0ffeex*\" fib saddr . iif oif missing drop"));
        assert!(text.contains("tcp dport { 10250 } drop"));
        assert!(text.contains("meta skuid 1999999999 ct state new reject"));
        assert!(text.contains("elements = { 10.64.64.0/18, 192.168.0.0/16 }"));
        assert!(text.contains("ip saddr 10.64.64.0/18 ip daddr != @direct"));
        assert_eq!(text.matches("iifname \"cp00c0ffeex*\" meta nfproto ipv6 drop").count(), 2);
    }

    #[test]
    fn both_families_are_judged_alike_and_masqueraded_but_for_their_own_exceptions() {
        let blocks = "fd00:64::/64,10.64.64.0/18".parse().expect("blocks");
        let exceptions = ["192.168.0.0/16", "fd00:65::/64"].map(|it| it.parse().expect("a block"));
        let rules = Rules { blocks, exceptions: exceptions.into(), ..rules() };

        let text = rules.text();

        for (line, times) in [
            ("iifname \"cp00c0ffeex*\" ip saddr != 10.64.64.0/18 drop", 2),
            ("iifname \"cp00c0ffeex*\" ip6 saddr != fd00:64::/64 drop", 2),
            ("iifname \"cp00c0ffeex*\" ip6 daddr { ::1, fe80::/10, ff00::/8 } drop", 2),
            ("elements = { 10.64.64.0/18, 192.168.0.0/16 }", 1),
            ("elements = { fd00:64::/64, fd00:65::/64 }", 1),
            (
                "ip6 saddr fd00:64::/64 ip6 daddr != @direct6 oifname != \"cp00c0ffeex*\" masquerade",
                1,
            ),
        ] {
            assert_eq!(text.matches(line).count(), times, "{line}: {text}");
        }
        assert!(!text.contains("nfproto"));
        let other = rules.other_exceptions().expect("masqueraded");
        assert!(other.contains("direct { 10.64.64.0/18, 192.168.0.0/16 }"), "{other}");
        assert!(other.contains("direct6 { fd00:64::/64, fd00:65::/64 }"), "{other}");
    }

    #[test]
    fn other_exceptions_are_one_transaction_over_the_set_alone() {
        let exceptions = ["10.0.0.0/8", "10.244.1.0/24"].map(|it| it.parse().expect("a block"));
        let text = Rules { exceptions: exceptions.into(), ..rules() }.other_exceptions();

        let expected = "flush set inet copepod-00c0ffee direct\n\
                        add element inet copepod-00c0ffee direct { 10.0.0.0/8 }\n";
        assert_eq!(text.as_deref(), Some(expected));
    }

    #[test]
    fn without_masquerade_there_is_no_nat_chain() {
        let text = Rules { masquerade: false, denied_ports: Vec::new(), ..rules() }.text();

        assert!(!text.contains("nat") && !text.contains("direct"));
        assert!(!text.contains("dport"));
        assert_eq!(Rules { masquerade: false, ..rules() }.other_exceptions(), None);
    }
}
