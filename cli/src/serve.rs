//! The hidden commands: `__agent`, which the client starts, and `__broker` and `__compile`, which the agent starts.
//!
//! Here: the agent's settings from its environment, and its last words. Absent: what they do (`copepod-agent`, `copepod-domain`,
//! `copepod-image`).

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use copepod_agent::{AgentConfig, AgentError, run_agent, with_causes};

use crate::out::Out;
use crate::pull_settings::pull_rules;

/// The exit code of an agent that found another one at work: sysexits' "try again later".
pub(crate) const TAKEN: u8 = 75;

/// Runs the agent of `data` to its end; its exit code.
pub(crate) fn agent(out: Out, data: PathBuf) -> u8 {
    // It outlives the command that started it, and that command's terminal. It leads a session already where a person
    // started it by setsid.
    let _ = rustix::process::setsid();
    let config = match settings(data, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(why) => {
            out.error(&why);
            return 1;
        }
    };
    match run_agent(config, drop) {
        Ok(()) => 0,
        // The one that starts us tries again or tells; a line each time would only fill the other agent's log.
        Err(AgentError::Taken(_)) => TAKEN,
        Err(error) => {
            out.error(&with_causes(&error));
            1
        }
    }
}

/// Runs the broker whose listening socket is standard input; its exit code.
pub(crate) fn broker(out: Out) -> u8 {
    // It outlives the agent that started it.
    let _ = rustix::process::setsid();
    let listening = std::io::stdin().as_fd().try_clone_to_owned();
    match listening.and_then(copepod_domain::broker::serve) {
        Ok(()) => 0,
        Err(error) => {
            out.error(&format!("the broker cannot go on: {error}"));
            1
        }
    }
}

/// The agent's settings: the defaults, what `COPEPOD_*` variables say otherwise, and the folders of the user who starts it.
pub(crate) fn settings(
    data: PathBuf,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<AgentConfig, String> {
    let program = std::env::current_exe()
        .map_err(|error| format!("this program's own file cannot be found: {error}"))?;
    let runner = runner(&program, variable("COPEPOD_RUNNER"))?;
    let toolbox = toolbox(&program, variable("COPEPOD_TOOLBOX"));
    let mut config = AgentConfig::new(data, runner, program);
    config.toolbox = toolbox;
    let number = |name: &str| -> Result<Option<u64>, String> {
        let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let value = text.parse().map_err(|_| format!("{name}={text}: this is no whole number"))?;
        Ok(Some(value))
    };
    if let Some(text) = variable("COPEPOD_POD_CIDR").filter(|text| !text.is_empty()) {
        let cidrs = text.parse().map_err(|why| format!("COPEPOD_POD_CIDR={text}: {why}"))?;
        config.pod_cidrs = Some(cidrs);
    }
    config.allocatable_memory = number("COPEPOD_ALLOCATABLE_MEMORY")?;
    if let Some(millis) = number("COPEPOD_ALLOCATABLE_CPU_MILLIS")? {
        let millis = u32::try_from(millis)
            .map_err(|_| format!("COPEPOD_ALLOCATABLE_CPU_MILLIS={millis}: this is too large"))?;
        config.allocatable_cpu_millis = Some(millis);
    }
    if let Some(list) = variable("COPEPOD_NAME_SERVERS").filter(|text| !text.is_empty()) {
        let servers = list.split(',').map(|one| {
            one.trim()
                .parse()
                .map_err(|_| format!("COPEPOD_NAME_SERVERS={list}: {one:?} is no IP address"))
        });
        config.name_servers = Some(servers.collect::<Result<_, String>>()?);
    }
    config.pull = pull_rules(variable)?;
    if let Some(rate) = number("COPEPOD_LOG_BYTES_PER_SECOND")? {
        config.log_bytes_per_second = rate;
    }
    if let Some(seconds) = number("COPEPOD_COMPILE_CPU_SECONDS")? {
        config.compile_cpu_seconds = seconds;
    }
    if let Some(seconds) = number("COPEPOD_COMPILE_WALL_SECONDS")? {
        config.compile_wall_seconds = seconds;
    }
    if let Some(bytes) = number("COPEPOD_COMPILE_MEMORY")? {
        config.compile_memory = bytes;
    }
    if let Some(text) = variable("COPEPOD_ENGINE_SALT").filter(|text| !text.is_empty()) {
        let salt = text.parse().map_err(|why| format!("COPEPOD_ENGINE_SALT={text}: {why}"))?;
        config.engine_salt = Some(salt);
    }
    Ok(config)
}

/// The runner's program: beside this one, else where `COPEPOD_RUNNER` says.
pub(crate) fn runner(program: &Path, elsewhere: Option<String>) -> Result<PathBuf, String> {
    let beside = program.with_file_name("copepod-runner");
    if beside.is_file() {
        return Ok(beside);
    }
    match elsewhere.filter(|text| !text.is_empty()).map(PathBuf::from) {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(format!("COPEPOD_RUNNER={}: there is no such file", path.display())),
        None => Err(format!(
            "there is no {}: put copepod-runner beside copepod, or say in COPEPOD_RUNNER where it is",
            beside.display()
        )),
    }
}

/// The toolbox: where `COPEPOD_TOOLBOX` says, else beside this program, where it is there.
fn toolbox(program: &Path, elsewhere: Option<String>) -> Option<PathBuf> {
    let beside = program.with_file_name("copepod-toolbox.wasm");
    let named = elsewhere.filter(|text| !text.is_empty()).map(PathBuf::from);
    named.or_else(|| beside.is_file().then_some(beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<AgentConfig, String> {
        // This test's own program stands for a runner that is there.
        let here = std::env::current_exe().expect("it runs");
        let here = here.to_string_lossy().into_owned();
        settings("/data".into(), &|asked| match asked {
            "COPEPOD_RUNNER" => Some(here.clone()),
            _ if asked == name => Some(value.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn a_setting_is_taken_from_its_variable_and_a_bad_one_is_refused_by_its_name() {
        assert_eq!(set("COPEPOD_COMPILE_MEMORY", "1024").expect("good").compile_memory, 1024);
        assert_eq!(set("COPEPOD_COMPILE_MEMORY", "").expect("unset").compile_memory, 4 << 30);
        assert_eq!(
            set("COPEPOD_NAME_SERVERS", "1.1.1.1, 9.9.9.9")
                .expect("good")
                .name_servers
                .map(|it| it.len()),
            Some(2)
        );
        for name in [
            "COPEPOD_COMPILE_CPU_SECONDS",
            "COPEPOD_ALLOCATABLE_MEMORY",
            "COPEPOD_NAME_SERVERS",
            "COPEPOD_ENGINE_SALT",
        ] {
            let refused = set(name, "too much").expect_err(name);
            assert!(refused.starts_with(name), "{refused}");
        }
    }

    #[test]
    fn a_runner_that_is_nowhere_is_told_with_both_places() {
        let nowhere = runner(Path::new("/nowhere/copepod"), None).expect_err("none");
        let elsewhere =
            runner(Path::new("/nowhere/copepod"), Some("/nowhere/r".into())).expect_err("none");

        assert!(nowhere.contains("/nowhere/copepod-runner") && nowhere.contains("COPEPOD_RUNNER"));
        assert!(elsewhere.contains("/nowhere/r"), "{elsewhere}");
    }
}
