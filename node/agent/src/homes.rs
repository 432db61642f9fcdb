//! Which tree each pod is in, and which one a new pod goes into.
//!
//! A domain is what pods share: a namespace's, or a pod's own. A tree is one runner's place on this machine, with its user, its
//! network and its folder `<data>/domains/<tree>`. A domain has one tree, or several while runners of older generations live in it:
//! the first is named as the domain is, the others `<domain>.2`, `<domain>.3`, …
//!
//! A pod stays in its tree to its end. Where its runner dies, or leaves what it serves to an heir, the successor in that tree is of the
//! agent's own generation.
//!
//! Pure. Absent: runners, and what is on disk of this: a pod's folder in its tree (`sandbox`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where the pods are.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    trees: BTreeMap<String, Tree>,
    of_pods: HashMap<String, String>,
}

#[derive(Debug, Default)]
struct Tree {
    pods: BTreeSet<String>,
    /// Its runner is of the agent's own generation, or will be with its next start.
    is_current: bool,
}

impl Homes {
    /// The tree of a pod: the one that it is in, or else one whose runner is of the agent's own generation.
    pub(crate) fn place(&mut self, domain: &str, pod: &str) -> String {
        if let Some(tree) = self.of_pods.get(pod) {
            return tree.clone();
        }
        let current = self
            .trees
            .iter()
            .find(|(name, tree)| tree.is_current && is_of_domain(name, domain))
            .map(|(name, _)| name.clone());
        let name = current.unwrap_or_else(|| self.free_name(domain));
        self.trees.entry(name.clone()).or_default().is_current = true;
        self.add(&name, pod);
        name
    }

    fn free_name(&self, domain: &str) -> String {
        let numbered = (2_u64..).map(|number| format!("{domain}.{number}"));
        let mut names = [domain.to_owned()].into_iter().chain(numbered);
        names
            .find(|name| !self.trees.contains_key(name))
            .expect("there are fewer trees than numbers")
    }

    /// Notes that `pod` is in `tree`, of whatever generation its runner is.
    pub(crate) fn add(&mut self, tree: &str, pod: &str) {
        self.trees.entry(tree.to_owned()).or_default().pods.insert(pod.to_owned());
        self.of_pods.insert(pod.to_owned(), tree.to_owned());
    }

    /// Notes whether the tree's runner is of the agent's own generation.
    pub(crate) fn set_current(&mut self, tree: &str, is_current: bool) {
        if let Some(tree) = self.trees.get_mut(tree) {
            tree.is_current = is_current;
        }
    }

    /// The trees with pods whose runner is of another generation.
    pub(crate) fn outdated(&self) -> Vec<String> {
        let outdated = self.trees.iter().filter(|(_, it)| !it.is_current && !it.pods.is_empty());
        outdated.map(|(name, _)| name.clone()).collect()
    }

    /// Takes a pod out of its tree. The tree keeps its name until [`Homes::forget`].
    pub(crate) fn leave(&mut self, pod: &str) {
        if let Some(tree) = self.of_pods.remove(pod).and_then(|tree| self.trees.get_mut(&tree)) {
            tree.pods.remove(pod);
        }
    }

    /// Frees the name of a tree that was removed, unless a pod has come into it since.
    pub(crate) fn forget(&mut self, tree: &str) {
        if self.is_empty(tree) {
            self.trees.remove(tree);
        }
    }

    /// Whether no pod is in a tree.
    pub(crate) fn is_empty(&self, tree: &str) -> bool {
        self.trees.get(tree).is_none_or(|tree| tree.pods.is_empty())
    }

    /// The tree that a pod is in.
    pub(crate) fn tree_of(&self, pod: &str) -> Option<&str> {
        self.of_pods.get(pod).map(String::as_str)
    }

    /// The pods in a tree.
    pub(crate) fn pods_in(&self, tree: &str) -> Vec<String> {
        self.trees.get(tree).into_iter().flat_map(|tree| tree.pods.iter().cloned()).collect()
    }
}

fn is_of_domain(tree: &str, domain: &str) -> bool {
    let Some(rest) = tree.strip_prefix(domain) else { return false };
    let number = rest.strip_prefix('.');
    rest.is_empty() || number.is_some_and(|number| number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The homes of an agent that found pod `old` in a runner of an older generation.
    fn upgraded() -> Homes {
        let mut homes = Homes::default();
        homes.add("ns-a", "old");
        homes.set_current("ns-a", false);
        homes
    }

    #[test]
    fn the_pods_of_a_domain_share_a_tree_that_is_named_as_the_domain() {
        let mut homes = Homes::default();

        assert_eq!(homes.place("ns-a", "one"), "ns-a");
        assert_eq!(homes.place("ns-a", "two"), "ns-a");
        assert_eq!(homes.place("ns-b", "three"), "ns-b");
        assert_eq!(homes.pods_in("ns-a"), ["one", "two"]);
    }

    #[test]
    fn a_new_pod_does_not_join_a_runner_of_an_older_generation_and_an_old_pod_stays_in_it() {
        let mut homes = upgraded();

        assert_eq!(homes.place("ns-a", "new"), "ns-a.2");
        assert_eq!(homes.place("ns-a", "newer"), "ns-a.2");
        assert_eq!(homes.place("ns-a", "old"), "ns-a");
    }

    #[test]
    fn what_an_older_generation_still_serves_is_known() {
        let mut homes = upgraded();
        homes.place("ns-a", "new");
        assert_eq!(homes.outdated(), ["ns-a"]);

        homes.leave("old");

        assert_eq!(homes.outdated(), Vec::<String>::new());
    }

    #[test]
    fn after_a_second_upgrade_there_are_three_trees() {
        let mut homes = upgraded();
        homes.place("ns-a", "new");

        homes.set_current("ns-a.2", false);

        assert_eq!(homes.place("ns-a", "newest"), "ns-a.3");
    }

    #[test]
    fn where_an_older_runner_died_its_successor_takes_new_pods_too() {
        let mut homes = upgraded();

        homes.set_current("ns-a", true);

        assert_eq!(homes.place("ns-a", "new"), "ns-a");
    }

    #[test]
    fn the_name_of_a_tree_is_free_again_once_it_is_removed_and_not_before() {
        let mut homes = upgraded();
        homes.leave("old");
        assert_eq!(homes.place("ns-a", "new"), "ns-a.2");

        homes.forget("ns-a");
        homes.set_current("ns-a.2", false);

        assert_eq!(homes.place("ns-a", "newer"), "ns-a");
    }

    #[test]
    fn a_tree_that_a_pod_came_into_while_it_was_removed_is_kept() {
        let mut homes = Homes::default();
        homes.place("ns-a", "last");
        homes.leave("last");
        assert!(homes.is_empty("ns-a"));

        homes.place("ns-a", "next");
        homes.forget("ns-a");

        assert_eq!(homes.tree_of("next"), Some("ns-a"));
        assert_eq!(homes.pods_in("ns-a"), ["next"]);
    }

    #[test]
    fn domains_whose_names_begin_alike_share_nothing() {
        let mut homes = Homes::default();
        homes.place("ns-a-2", "other");
        homes.place("ns-a.b", "another");

        assert_eq!(homes.place("ns-a", "one"), "ns-a");
    }
}
