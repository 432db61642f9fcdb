//! The table of fields. To honour a new one, move its line to [`Class::Honoured`] in the change that makes it so.
//!
//! Absent: any logic.

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It does what Kubernetes says.
    Honoured,
    /// What it asks for holds anyway, or it speaks to somebody else (the scheduler).
    Satisfied,
    /// It is refused, in every value but the empty one.
    Refused,
}

impl Class {
    /// The word in the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Satisfied => "satisfied",
            Self::Refused => "refused",
        }
    }
}

/// Which values are accepted, beside the empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// All.
    Anything,
    /// These words.
    OneOf(&'static [&'static str]),
    /// Only `false`.
    False,
    /// A map with these keys.
    Keys(&'static [&'static str]),
    /// A list of these words.
    Items(&'static [&'static str]),
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The path below the section's roots; `[]` is any element of a list.
    pub path: &'static str,
    /// What becomes of it.
    pub class: Class,
    /// Which values.
    pub accepts: Accepts,
    /// It speaks for all fields beneath it too.
    pub deep: bool,
    /// How it is honoured, why it is satisfied, or what to write instead.
    pub note: &'static str,
}

impl Field {
    /// No field beneath it has a line of its own.
    pub fn speaks_for_all(&self) -> bool {
        self.deep || self.class == Class::Refused || !matches!(self.accepts, Accepts::Anything)
    }

    const fn accepts(mut self, accepts: Accepts) -> Self {
        self.accepts = accepts;
        self
    }

    const fn deep(mut self) -> Self {
        self.deep = true;
        self
    }
}

/// Fields that stand below the same roots.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// Where the fields stand.
    pub roots: &'static [&'static str],
    /// The fields.
    pub fields: &'static [Field],
}

const fn field(path: &'static str, class: Class, note: &'static str) -> Field {
    Field { path, class, accepts: Accepts::Anything, deep: false, note }
}

const fn yes(path: &'static str, note: &'static str) -> Field {
    field(path, Class::Honoured, note)
}

const fn moot(path: &'static str, note: &'static str) -> Field {
    field(path, Class::Satisfied, note)
}

const fn no(path: &'static str, note: &'static str) -> Field {
    field(path, Class::Refused, note)
}

const SCHEDULER: &str = "the scheduler's; a pod that is here has been placed";
const NO_USERS: &str = "a guest has no user, no group and no file owners";
const NO_SYSCALLS: &str =
    "a guest makes no system calls; its runner is confined by seccomp and Landlock";
const DRIVER: &str =
    "no storage drivers here; use emptyDir, configMap, secret, projected or hostPath";
const LATER_VOLUME: &str =
    "comes with a later version; use emptyDir, configMap, secret, projected or hostPath";

/// The whole table.
pub const SECTIONS: &[Section] = &[
    Section { title: "Pod", roots: &["spec"], fields: POD },
    Section { title: "Pod security context", roots: &["spec.securityContext"], fields: POD_SECURITY },
    Section {
        title: "Containers",
        roots: &["spec.containers[]", "spec.initContainers[]", "spec.ephemeralContainers[]"],
        fields: CONTAINER,
    },
    Section {
        title: "App containers alone",
        roots: &["spec.containers[]"],
        fields: &[yes("restartPolicy", "the container's own, in the place of the pod's")
            .accepts(Accepts::OneOf(&["Always", "OnFailure", "Never"]))],
    },
    Section {
        title: "Init containers alone",
        roots: &["spec.initContainers[]"],
        fields: &[yes("restartPolicy", "`Always` makes it a sidecar: the next one starts when this has started, and it stops last")
            .accepts(Accepts::OneOf(&["Always", "OnFailure", "Never"]))],
    },
    Section {
        title: "Ephemeral containers alone",
        roots: &["spec.ephemeralContainers[]"],
        fields: &[
            no("restartPolicy", "an ephemeral container runs once; leave it out"),
            moot(
                "targetContainerName",
                "all containers of a pod share its address; a guest has no processes to look at",
            ),
        ],
    },
    Section {
        title: "Container security context",
        roots: &[
            "spec.containers[].securityContext",
            "spec.initContainers[].securityContext",
            "spec.ephemeralContainers[].securityContext",
        ],
        fields: SECURITY,
    },
    Section {
        title: "Probes",
        roots: &[
            "spec.containers[].startupProbe",
            "spec.containers[].livenessProbe",
            "spec.containers[].readinessProbe",
            "spec.initContainers[].startupProbe",
            "spec.initContainers[].livenessProbe",
            "spec.initContainers[].readinessProbe",
            "spec.ephemeralContainers[].startupProbe",
            "spec.ephemeralContainers[].livenessProbe",
            "spec.ephemeralContainers[].readinessProbe",
        ],
        fields: PROBE,
    },
    Section {
        title: "Hooks",
        roots: &[
            "spec.containers[].lifecycle.postStart",
            "spec.containers[].lifecycle.preStop",
            "spec.initContainers[].lifecycle.postStart",
            "spec.initContainers[].lifecycle.preStop",
            "spec.ephemeralContainers[].lifecycle.postStart",
            "spec.ephemeralContainers[].lifecycle.preStop",
        ],
        fields: HOOK,
    },
    Section { title: "Volumes", roots: &["spec.volumes[]"], fields: VOLUME },
];

const POD: &[Field] = &[
    yes("activeDeadlineSeconds", "the pod is stopped and Failed with DeadlineExceeded"),
    moot("affinity", SCHEDULER).deep(),
    moot(
        "automountServiceAccountToken",
        "a cluster's API server adds the volume itself; `copepod run` has no tokens and refuses `true`",
    ),
    yes("containers", "started in order, without waiting for each other but for postStart"),
    yes("dnsConfig", "added to what dnsPolicy gives; at most 3 servers and 32 search domains"),
    yes("dnsConfig.nameservers", ""),
    yes("dnsConfig.options", "`ndots`; other options have no meaning for our resolver"),
    yes("dnsConfig.options[].name", "").accepts(Accepts::OneOf(&[
        "ndots",
        "timeout",
        "attempts",
        "rotate",
        "single-request",
        "single-request-reopen",
        "use-vc",
        "edns0",
        "trust-ad",
        "no-tld-query",
        "inet6",
        "no-check-names",
    ])),
    yes("dnsConfig.options[].value", ""),
    yes("dnsConfig.searches", ""),
    yes(
        "dnsPolicy",
        "without a cluster DNS `ClusterFirst` means the node's resolver, as under a kubelet",
    )
    .accepts(Accepts::OneOf(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"])),
    moot("enableServiceLinks", "there are no Services without a cluster"),
    yes(
        "ephemeralContainers",
        "added to a pod that runs (`kubectl debug`); started at once, never twice, and no part of the pod's phase or readiness",
    ),
    moot("evictionResponders", "the Eviction API's; nothing evicts here").deep(),
    yes("hostAliases", "names that the pod's guests resolve first"),
    yes("hostAliases[].hostnames", ""),
    yes("hostAliases[].ip", ""),
    no("hostIPC", "a guest never shares the host's IPC; leave it out"),
    yes(
        "hostNetwork",
        "on a cluster's node that allows it: the pod's address is the node's own; its loopback stays its own",
    ),
    no("hostPID", "a guest never sees the host's processes; leave it out"),
    moot("hostUsers", NO_USERS),
    yes("hostname", "else the pod's name"),
    yes("hostnameOverride", "wins over hostname"),
    yes("imagePullSecrets", "dockerconfigjson and dockercfg"),
    yes("imagePullSecrets[].name", ""),
    yes(
        "initContainers",
        "strictly in order, each after the success (a sidecar: the start) of the one before",
    ),
    moot("nodeName", "this machine is the node").deep(),
    moot("nodeSelector", SCHEDULER).deep(),
    moot("os", "wasm knows no operating system; `linux` is taken as the default that it is"),
    moot("os.name", "a pod for Windows does not run here").accepts(Accepts::OneOf(&["linux"])),
    moot("overhead", "counted by the scheduler").deep(),
    moot("preemptionPolicy", SCHEDULER),
    moot("priority", SCHEDULER),
    moot("priorityClassName", SCHEDULER),
    yes(
        "readinessGates",
        "ready only with these conditions, which somebody else sets; refused by `copepod run`, where nobody does",
    ),
    yes("readinessGates[].conditionType", ""),
    no("resourceClaims", "there are no devices to claim; leave it out"),
    no(
        "resources",
        "limits of a whole pod come with a later version; write them at its containers",
    ),
    yes("restartPolicy", "crash back-off 10 s doubling to 300 s, forgotten after 10 minutes")
        .accepts(Accepts::OneOf(&["Always", "OnFailure", "Never"])),
    yes(
        "runtimeClassName",
        "`copepod` shares a runner per namespace, `copepod-pod` gives the pod one of its own",
    ),
    moot("schedulerName", SCHEDULER),
    no("schedulingGates", "a gated pod is not meant to run yet; remove the gates"),
    moot("schedulingGroup", SCHEDULER).deep(),
    yes("securityContext", ""),
    moot("serviceAccount", "the old name of serviceAccountName"),
    moot("serviceAccountName", "shown by fieldRef; whose tokens they are, the API server knows"),
    yes(
        "setHostnameAsFQDN",
        "with a subdomain; of at most 64 bytes, else the pod waits with that reason",
    ),
    no("shareProcessNamespace", "guests are no processes and cannot see each other; leave it out"),
    yes(
        "subdomain",
        "the pod's whole name leads to itself; for others it is the cluster's DNS that answers",
    ),
    yes(
        "terminationGracePeriodSeconds",
        "preStop counts against it; at least 2 s remain for the stop",
    ),
    moot("tolerations", SCHEDULER).deep(),
    moot("topologySpreadConstraints", SCHEDULER).deep(),
    yes("volumes", ""),
];

const POD_SECURITY: &[Field] = &[
    moot("appArmorProfile", NO_SYSCALLS).deep(),
    moot("fsGroup", NO_USERS),
    moot("fsGroupChangePolicy", NO_USERS),
    moot("runAsGroup", NO_USERS),
    moot("runAsNonRoot", NO_USERS),
    moot("runAsUser", NO_USERS),
    moot("seLinuxChangePolicy", NO_SYSCALLS),
    moot("seLinuxOptions", NO_SYSCALLS).deep(),
    moot("seccompProfile", NO_SYSCALLS).deep(),
    moot("supplementalGroups", NO_USERS),
    moot("supplementalGroupsPolicy", NO_USERS),
    no("sysctls", "a guest has no kernel to tune; remove them"),
    no("windowsOptions", "a pod for Windows does not run here"),
];

const SECURITY: &[Field] = &[
    moot("allowPrivilegeEscalation", "a guest has nothing to escalate to"),
    moot("appArmorProfile", NO_SYSCALLS).deep(),
    moot("capabilities", "a guest has none"),
    moot(
        "capabilities.add",
        "a guest can hold no capabilities; it may bind ports below 1024 without one, and has no other's processes to trace",
    )
    // The second is what `kubectl debug` asks for unless told otherwise.
    .accepts(Accepts::Items(&["NET_BIND_SERVICE", "SYS_PTRACE"])),
    moot("capabilities.drop", "a guest has none to lose"),
    moot("privileged", "a guest cannot be privileged; write false or leave it out")
        .accepts(Accepts::False),
    moot("procMount", "a guest has no /proc").accepts(Accepts::OneOf(&["Default"])),
    yes(
        "readOnlyRootFilesystem",
        "else what the container writes to its image's files lies above them, and goes with the run; a wasm artifact has no files, so nothing but its mounts is there",
    ),
    moot("runAsGroup", NO_USERS),
    moot("runAsNonRoot", NO_USERS),
    moot("runAsUser", NO_USERS),
    moot("seLinuxOptions", NO_SYSCALLS).deep(),
    moot("seccompProfile", NO_SYSCALLS).deep(),
    no("windowsOptions", "a pod for Windows does not run here"),
];

const CONTAINER: &[Field] = &[
    yes("args", "`$(VAR)` is replaced"),
    yes("command", "`$(VAR)` is replaced; else the image's entrypoint, else the module's name"),
    yes("env", "later ones win and see earlier ones"),
    yes("env[].name", ""),
    yes("env[].value", ""),
    yes("env[].valueFrom", ""),
    yes("env[].valueFrom.configMapKeyRef", ""),
    yes("env[].valueFrom.configMapKeyRef.key", ""),
    yes("env[].valueFrom.configMapKeyRef.name", ""),
    yes("env[].valueFrom.configMapKeyRef.optional", ""),
    yes("env[].valueFrom.fieldRef", "metadata.{name,namespace,uid,labels['k'],annotations['k']}, spec.{nodeName,serviceAccountName}, status.{hostIP,hostIPs,podIP,podIPs}"),
    yes("env[].valueFrom.fieldRef.apiVersion", "").accepts(Accepts::OneOf(&["v1"])),
    yes("env[].valueFrom.fieldRef.fieldPath", ""),
    no("env[].valueFrom.fileKeyRef", "comes with a later version; write the value, or take it from a ConfigMap or Secret"),
    yes("env[].valueFrom.resourceFieldRef", "a missing limit is what the node has"),
    yes("env[].valueFrom.resourceFieldRef.containerName", ""),
    yes("env[].valueFrom.resourceFieldRef.divisor", "rounded up"),
    yes("env[].valueFrom.resourceFieldRef.resource", ""),
    yes("env[].valueFrom.secretKeyRef", ""),
    yes("env[].valueFrom.secretKeyRef.key", ""),
    yes("env[].valueFrom.secretKeyRef.name", ""),
    yes("env[].valueFrom.secretKeyRef.optional", ""),
    yes("envFrom", ""),
    yes("envFrom[].configMapRef", ""),
    yes("envFrom[].configMapRef.name", ""),
    yes("envFrom[].configMapRef.optional", ""),
    yes("envFrom[].prefix", ""),
    yes("envFrom[].secretRef", ""),
    yes("envFrom[].secretRef.name", ""),
    yes("envFrom[].secretRef.optional", ""),
    yes("image", "a wasm artifact, or a container image whose entrypoint is a .wasm, whose files are at `/`; a Linux image leaves the container waiting"),
    yes("imagePullPolicy", "").accepts(Accepts::OneOf(&["Always", "IfNotPresent", "Never"])),
    yes("lifecycle", "not for init containers that are no sidecars"),
    yes("lifecycle.postStart", "runs beside the program; its failure ends the container"),
    yes("lifecycle.preStop", "runs before the stop, within the grace"),
    no("lifecycle.stopSignal", "WASI has no signals; leave it out"),
    yes("livenessProbe", "its failure restarts the container"),
    yes("name", ""),
    yes("ports", "an HTTP component is served on its TCP ports (8080 when it declares none)"),
    yes("ports[].containerPort", ""),
    yes("ports[].hostIP", "an address of the node; else all of them"),
    yes(
        "ports[].hostPort",
        "leads from the node to the container's port, in the kernel; takes root and nft",
    ),
    yes("ports[].name", "probes and hooks may name it"),
    yes("ports[].protocol", "").accepts(Accepts::OneOf(&["TCP", "UDP"])),
    yes("readinessProbe", "goes on while the pod terminates"),
    moot("resizePolicy", "nothing is resized in place").deep(),
    yes("resources", ""),
    no("resources.claims", "there are no devices to claim; leave it out"),
    yes("resources.limits", "memory: past it OOMKilled; cpu: enforced; a limit of ephemeral storage comes with a later version, use emptyDir.sizeLimit")
        .accepts(Accepts::Keys(&["cpu", "memory"])),
    yes("resources.requests", "cpu is a weight; the rest is the scheduler's")
        .accepts(Accepts::Keys(&["cpu", "memory", "ephemeral-storage"])),
    yes("restartPolicyRules", "the first that fits an exit code restarts the container, before any policy"),
    yes("restartPolicyRules[].action", "").accepts(Accepts::OneOf(&["Restart"])),
    yes("restartPolicyRules[].exitCodes", ""),
    yes("restartPolicyRules[].exitCodes.operator", "").accepts(Accepts::OneOf(&["In", "NotIn"])),
    yes("restartPolicyRules[].exitCodes.values", "at most 255"),
    yes("securityContext", ""),
    yes("startupProbe", "gates the other two"),
    yes("stdin", "stays open for `attach`"),
    yes("stdinOnce", "stdin ends with the first client"),
    yes("terminationMessagePath", ""),
    yes("terminationMessagePolicy", "").accepts(Accepts::OneOf(&["File", "FallbackToLogsOnError"])),
    yes("tty", "the program is told of a terminal; who attaches has one, with lines, echo and Ctrl-D"),
    no("volumeDevices", "a guest has no block devices; use volumeMounts"),
    yes("volumeMounts", "outer before inner, whatever their order"),
    no("volumeMounts[].bindMountOptions", "a guest makes no mounts; leave it out"),
    yes("volumeMounts[].mountPath", "a folder below /"),
    moot("volumeMounts[].mountPropagation", "a guest makes no mounts").accepts(Accepts::OneOf(&["None"])),
    yes("volumeMounts[].name", ""),
    yes("volumeMounts[].readOnly", "what the agent writes (configMap, secret, downwardAPI, projected) is always so"),
    moot("volumeMounts[].recursiveReadOnly", "nothing is mounted beneath a volume; for hostPath only the folder itself is read-only")
        .accepts(Accepts::OneOf(&["Disabled", "IfPossible"])),
    yes("volumeMounts[].subPath", "relative and without `..`; never through a link; of a configMap and the like as it was at the start"),
    yes("volumeMounts[].subPathExpr", "as subPath, after its variables are replaced"),
    yes(
        "workingDir",
        "else the image's; told by `initial-cwd` and by PWD: programs whose language looks at neither begin in /",
    ),
];

const PROBE: &[Field] = &[
    yes("exec", "another instance in the container's sandbox"),
    yes("exec.command", "`$(VAR)` is replaced where the value stands in the spec"),
    yes("failureThreshold", ""),
    yes("grpc", "the health protocol; of TLS nobody checks the certificate"),
    yes("grpc.mode", "").accepts(Accepts::OneOf(&["Plaintext", "TLS"])),
    yes("grpc.port", ""),
    yes("grpc.service", ""),
    yes("httpGet", "to the pod's own address; redirects to other hosts are not followed"),
    no(
        "httpGet.host",
        "a probe goes to the pod's own address; remove it, or write a `Host` in httpHeaders",
    ),
    yes("httpGet.httpHeaders", ""),
    yes("httpGet.httpHeaders[].name", ""),
    yes("httpGet.httpHeaders[].value", ""),
    yes("httpGet.path", ""),
    yes("httpGet.port", "a number or a port's name"),
    no("httpGet.protocol", "comes with a later version; leave it out"),
    yes("httpGet.scheme", "of TLS nobody checks the certificate")
        .accepts(Accepts::OneOf(&["HTTP", "HTTPS"])),
    yes("initialDelaySeconds", ""),
    yes("periodSeconds", ""),
    yes("successThreshold", "1 for startup and liveness"),
    yes("tcpSocket", ""),
    no("tcpSocket.host", "a probe goes to the pod's own address; remove it"),
    yes("tcpSocket.port", "a number or a port's name"),
    yes("terminationGracePeriodSeconds", "the grace of a kill by this probe; not for readiness"),
    yes("timeoutSeconds", ""),
];

const HOOK: &[Field] = &[
    yes("exec", "another instance in the container's sandbox"),
    yes("exec.command", ""),
    yes("httpGet", "to the pod's own address"),
    no(
        "httpGet.host",
        "a hook goes to the pod's own address; remove it, or write a `Host` in httpHeaders",
    ),
    yes("httpGet.httpHeaders", ""),
    yes("httpGet.httpHeaders[].name", ""),
    yes("httpGet.httpHeaders[].value", ""),
    yes("httpGet.path", ""),
    yes("httpGet.port", "a number or a port's name"),
    no("httpGet.protocol", "comes with a later version; leave it out"),
    yes("httpGet.scheme", "of TLS nobody checks the certificate")
        .accepts(Accepts::OneOf(&["HTTP", "HTTPS"])),
    yes("sleep", ""),
    yes("sleep.seconds", ""),
    no("tcpSocket", "no kubelet runs a tcpSocket hook; write exec, httpGet or sleep"),
];

const VOLUME: &[Field] = &[
    no("awsElasticBlockStore", DRIVER),
    no("azureDisk", DRIVER),
    no("azureFile", DRIVER),
    no("cephfs", DRIVER),
    no("cinder", DRIVER),
    yes("configMap", "read-only for guests; files change with the ConfigMap, all at once"),
    yes("configMap.defaultMode", ""),
    no("configMap.defaultUser", "a guest has no user; leave it out"),
    yes("configMap.items", ""),
    yes("configMap.items[].key", ""),
    yes("configMap.items[].mode", ""),
    yes("configMap.items[].path", ""),
    no("configMap.items[].user", "a guest has no user; leave it out"),
    yes("configMap.name", ""),
    yes("configMap.optional", ""),
    no("csi", DRIVER),
    yes("downwardAPI", "read-only for guests"),
    yes("downwardAPI.defaultMode", ""),
    no("downwardAPI.defaultUser", "a guest has no user; leave it out"),
    yes("downwardAPI.items", ""),
    yes(
        "downwardAPI.items[].fieldRef",
        "metadata.{name,namespace,uid,labels,annotations,labels['k'],annotations['k']}",
    ),
    yes("downwardAPI.items[].fieldRef.apiVersion", "").accepts(Accepts::OneOf(&["v1"])),
    yes("downwardAPI.items[].fieldRef.fieldPath", ""),
    yes("downwardAPI.items[].mode", ""),
    yes("downwardAPI.items[].path", ""),
    yes("downwardAPI.items[].resourceFieldRef", "a missing limit is what the node has"),
    yes("downwardAPI.items[].resourceFieldRef.containerName", ""),
    yes("downwardAPI.items[].resourceFieldRef.divisor", "rounded up"),
    yes("downwardAPI.items[].resourceFieldRef.resource", ""),
    no("downwardAPI.items[].user", "a guest has no user; leave it out"),
    yes("emptyDir", ""),
    yes("emptyDir.medium", "huge pages are not there").accepts(Accepts::OneOf(&["Memory"])),
    no("emptyDir.mode", "a guest sees no permission bits; leave it out"),
    yes("emptyDir.sizeLimit", "enforced where guests write"),
    no("ephemeral", DRIVER),
    no("fc", DRIVER),
    no("flexVolume", DRIVER),
    no("flocker", DRIVER),
    no("gcePersistentDisk", DRIVER),
    no("gitRepo", "Kubernetes has given it up; clone in an init container into an emptyDir"),
    no("glusterfs", DRIVER),
    yes("hostPath", "whatever the invoking user may open; no component may be a link"),
    yes("hostPath.path", ""),
    yes("hostPath.type", "a guest mounts folders; for a file, name its folder")
        .accepts(Accepts::OneOf(&["Directory", "DirectoryOrCreate"])),
    no("image", LATER_VOLUME),
    no("iscsi", DRIVER),
    yes("name", ""),
    no("nfs", DRIVER),
    yes(
        "persistentVolumeClaim",
        "bound to a volume of kind hostPath or local; refused by `copepod run`, where nobody binds it",
    ),
    yes("persistentVolumeClaim.claimName", ""),
    yes("persistentVolumeClaim.readOnly", ""),
    no("photonPersistentDisk", DRIVER),
    no("portworxVolume", DRIVER),
    yes("projected", "read-only for guests"),
    yes("projected.defaultMode", ""),
    no("projected.defaultUser", "a guest has no user; leave it out"),
    yes("projected.sources", "of two files under one path the later source's is there"),
    no(
        "projected.sources[].clusterTrustBundle",
        "comes with a later version; use a configMap source",
    ),
    yes("projected.sources[].configMap", ""),
    yes("projected.sources[].configMap.items", ""),
    yes("projected.sources[].configMap.items[].key", ""),
    yes("projected.sources[].configMap.items[].mode", ""),
    yes("projected.sources[].configMap.items[].path", ""),
    no("projected.sources[].configMap.items[].user", "a guest has no user; leave it out"),
    yes("projected.sources[].configMap.name", ""),
    yes("projected.sources[].configMap.optional", ""),
    yes("projected.sources[].downwardAPI", ""),
    yes("projected.sources[].downwardAPI.items", ""),
    yes(
        "projected.sources[].downwardAPI.items[].fieldRef",
        "metadata.{name,namespace,uid,labels,annotations,labels['k'],annotations['k']}",
    ),
    yes("projected.sources[].downwardAPI.items[].fieldRef.apiVersion", "")
        .accepts(Accepts::OneOf(&["v1"])),
    yes("projected.sources[].downwardAPI.items[].fieldRef.fieldPath", ""),
    yes("projected.sources[].downwardAPI.items[].mode", ""),
    yes("projected.sources[].downwardAPI.items[].path", ""),
    yes(
        "projected.sources[].downwardAPI.items[].resourceFieldRef",
        "a missing limit is what the node has",
    ),
    yes("projected.sources[].downwardAPI.items[].resourceFieldRef.containerName", ""),
    yes("projected.sources[].downwardAPI.items[].resourceFieldRef.divisor", "rounded up"),
    yes("projected.sources[].downwardAPI.items[].resourceFieldRef.resource", ""),
    no("projected.sources[].downwardAPI.items[].user", "a guest has no user; leave it out"),
    no("projected.sources[].podCertificate", "comes with a later version; use a secret source"),
    yes("projected.sources[].secret", ""),
    yes("projected.sources[].secret.items", ""),
    yes("projected.sources[].secret.items[].key", ""),
    yes("projected.sources[].secret.items[].mode", ""),
    yes("projected.sources[].secret.items[].path", ""),
    no("projected.sources[].secret.items[].user", "a guest has no user; leave it out"),
    yes("projected.sources[].secret.name", ""),
    yes("projected.sources[].secret.optional", ""),
    yes(
        "projected.sources[].serviceAccountToken",
        "of a cluster's API server; `copepod run` has none and refuses it",
    ),
    yes("projected.sources[].serviceAccountToken.audience", ""),
    yes("projected.sources[].serviceAccountToken.expirationSeconds", "from 600"),
    yes("projected.sources[].serviceAccountToken.path", ""),
    no("projected.sources[].serviceAccountToken.user", "a guest has no user; leave it out"),
    no("quobyte", DRIVER),
    no("rbd", DRIVER),
    no("scaleIO", DRIVER),
    yes(
        "secret",
        "readable by the agent and the pod's domain only; read-only for guests; files change with the Secret, all at once",
    ),
    yes("secret.defaultMode", ""),
    no("secret.defaultUser", "a guest has no user; leave it out"),
    yes("secret.items", ""),
    yes("secret.items[].key", ""),
    yes("secret.items[].mode", ""),
    yes("secret.items[].path", ""),
    no("secret.items[].user", "a guest has no user; leave it out"),
    yes("secret.optional", ""),
    yes("secret.secretName", ""),
    no("storageos", DRIVER),
    no("vsphereVolume", DRIVER),
];
