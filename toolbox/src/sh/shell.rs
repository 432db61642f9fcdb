//! The state of a shell, and running what was parsed.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;

use brush_parser::ast::{
    AndOr, AndOrList, Assignment, AssignmentName, AssignmentValue, CaseItemPostAction, Command,
    CommandPrefixOrSuffixItem, CompoundCommand, CompoundList, FunctionBody, IoFileRedirectKind,
    IoFileRedirectTarget, IoRedirect, Pipeline, Program, SeparatorOperator, SimpleCommand,
};

use super::{arithmetic, builtins};
use crate::call::{Call, Variables};
use crate::places;
use crate::streams::{Input, Output, Streams};
use crate::tools;

/// How deep functions and substitutions may be in each other: a guest's stack ends where it traps.
const DEEPEST: usize = 200;

const NO_PROCESS_SUBSTITUTION: &str = "process substitution is Bash's: write a file, and read it";

/// What comes after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next one.
    Next,
    /// What is behind that many loops.
    Break(usize),
    /// The next round of the loop that is that many around this one.
    Continue(usize),
    /// The function's caller.
    Return,
    /// Nothing.
    Exit,
}

/// A variable.
#[derive(Clone, Debug, Default)]
pub(super) struct Variable {
    /// Its value; none where it is only marked.
    pub(super) value: Option<String>,
    /// Whether programs get it.
    pub(super) exported: bool,
    /// Whether it may not change any more.
    pub(super) read_only: bool,
}

/// What `set` sets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    pub(super) exit_on_error: bool,
    pub(super) no_unset: bool,
    pub(super) trace: bool,
    pub(super) no_glob: bool,
    pub(super) pipe_fail: bool,
}

impl Options {
    pub(super) fn set(&mut self, flag: char, on: bool) -> Result<(), String> {
        *match flag {
            'e' => &mut self.exit_on_error,
            'u' => &mut self.no_unset,
            'x' => &mut self.trace,
            'f' => &mut self.no_glob,
            _ => return Err(format!("unknown option -{flag}")),
        } = on;
        Ok(())
    }

    pub(super) fn set_named(&mut self, name: &str, on: bool) -> Result<(), String> {
        match name {
            "errexit" => self.exit_on_error = on,
            "nounset" => self.no_unset = on,
            "xtrace" => self.trace = on,
            "noglob" => self.no_glob = on,
            "pipefail" => self.pipe_fail = on,
            _ => return Err(format!("unknown option -o {name}")),
        }
        Ok(())
    }

    /// `$-`.
    pub(super) fn flags(self) -> String {
        let all = [
            (self.exit_on_error, 'e'),
            (self.no_glob, 'f'),
            (self.no_unset, 'u'),
            (self.trace, 'x'),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag).collect()
    }
}

/// A shell. A clone is a subshell.
#[derive(Clone)]
pub(super) struct Shell {
    /// `$0`.
    pub(super) name: String,
    /// `$1` and on.
    pub(super) positional: Vec<String>,
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) options: Options,
    /// Where it is.
    pub(super) folder: PathBuf,
    /// `$?`.
    pub(super) status: u8,
    /// What runs when it ends.
    pub(super) at_exit: Option<String>,
    pub(super) streams: Streams,
    /// It ended by a mistake in what it was given, not by `exit`.
    pub(super) is_mistake: bool,
    functions: HashMap<String, Rc<FunctionBody>>,
    /// Values that `local` has put aside, for each function that runs.
    pub(super) locals: Vec<Vec<(String, Option<Variable>)>>,
    /// In a condition, where a failure ends nothing.
    lenient: usize,
    depth: usize,
    /// What the last substitution since a command's begin came to.
    substituted: Option<u8>,
}

impl Shell {
    pub(super) fn new(call: &Call<'_>) -> Self {
        let exported = |value: &String| Variable {
            value: Some(value.clone()),
            exported: true,
            read_only: false,
        };
        let variables = call.variables.iter().map(|(name, value)| (name.clone(), exported(value)));
        let mut shell = Self {
            name: call.name.to_owned(),
            positional: Vec::new(),
            variables: variables.collect(),
            options: Options::default(),
            folder: call.folder.to_owned(),
            status: 0,
            at_exit: None,
            streams: call.streams.clone(),
            is_mistake: false,
            functions: HashMap::new(),
            locals: Vec::new(),
            lenient: 0,
            depth: 0,
            substituted: None,
        };
        let folder = shell.folder.display().to_string();
        shell.variables.insert("PWD".into(), exported(&folder));
        shell
    }

    /// Runs what is to run at the end; the exit code.
    pub(super) fn end(&mut self) -> u8 {
        if let Some(script) = self.at_exit.take() {
            let status = self.status;
            super::run_text(self, &script);
            // An `exit` of its own counts, anything else does not.
            if self.status == 0 {
                self.status = status;
            }
        }
        self.status
    }

    /// Tells a mistake in what it was given; the shell ends.
    pub(super) fn syntax(&mut self, why: &str) -> Flow {
        self.complain(why);
        self.status = 2;
        self.is_mistake = true;
        Flow::Exit
    }

    pub(super) fn complain(&mut self, why: &str) {
        let _ = writeln!(self.streams.error, "{}: {why}", self.name);
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.value.as_deref()
    }

    /// Sets a variable.
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) -> Result<(), String> {
        let variable = self.variables.entry(name.to_owned()).or_default();
        if variable.read_only {
            return Err(format!("{name}: is read only"));
        }
        variable.value = Some(value.into());
        Ok(())
    }

    /// What programs get.
    pub(super) fn environment(&self) -> Variables {
        let exported = self.variables.iter().filter(|(_, variable)| variable.exported);
        exported.filter_map(|(name, it)| Some((name.clone(), it.value.clone()?))).collect()
    }

    pub(super) fn program(&mut self, program: &Program) -> Flow {
        for list in &program.complete_commands {
            let flow = self.list(list);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    fn list(&mut self, list: &CompoundList) -> Flow {
        for item in &list.0 {
            if matches!(item.1, SeparatorOperator::Async) {
                return self.syntax(
                    "& starts a second process, and a WebAssembly sandbox has one: run the commands one after the other",
                );
            }
            let flow = self.and_or(&item.0);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    fn and_or(&mut self, list: &AndOrList) -> Flow {
        // All but the last are conditions.
        let last = list.additional.len();
        let mut flow = self.pipeline(&list.first, last > 0);
        for (at, next) in list.additional.iter().enumerate() {
            if flow != Flow::Next {
                return flow;
            }
            let (wanted, pipeline) = match next {
                AndOr::And(pipeline) => (self.status == 0, pipeline),
                AndOr::Or(pipeline) => (self.status != 0, pipeline),
            };
            if wanted {
                flow = self.pipeline(pipeline, at + 1 < last);
            }
        }
        flow
    }

    fn pipeline(&mut self, pipeline: &Pipeline, is_condition: bool) -> Flow {
        let is_lenient = is_condition || pipeline.bang;
        self.lenient += usize::from(is_lenient);
        let flow = match &pipeline.seq[..] {
            [one] => self.command(one),
            several => self.piped(several),
        };
        self.lenient -= usize::from(is_lenient);
        if pipeline.bang {
            self.status = u8::from(self.status == 0);
        } else if flow == Flow::Next
            && !is_lenient
            && self.lenient == 0
            && self.options.exit_on_error
            && self.status != 0
            && !matches!(&pipeline.seq[..], [Command::Compound(..)])
        {
            return Flow::Exit;
        }
        flow
    }

    /// Each in a subshell of its own, on what the one before has written.
    fn piped(&mut self, commands: &[Command]) -> Flow {
        let mut input = self.streams.input.clone();
        let mut failed = 0;
        for (at, command) in commands.iter().enumerate() {
            let mut inner = self.clone();
            inner.streams.input = input;
            let kept = (at + 1 < commands.len()).then(|| {
                let (output, kept) = Output::kept();
                inner.streams.output = output;
                kept
            });
            inner.command(command);
            inner.end();
            self.status = inner.status;
            if inner.status != 0 {
                failed = inner.status;
            }
            let Some(kept) = kept else { break };
            input = Input::of(kept.take());
        }
        if self.options.pipe_fail {
            self.status = failed;
        }
        Flow::Next
    }

    fn command(&mut self, command: &Command) -> Flow {
        match command {
            Command::Simple(simple) => self.simple(simple),
            Command::Compound(compound, redirects) => {
                let redirects = redirects.iter().flat_map(|list| &list.0);
                self.redirected(redirects, |shell| shell.compound(compound))
            }
            Command::Function(function) => {
                let body = Rc::new(function.body.clone());
                self.functions.insert(function.fname.value.clone(), body);
                self.status = 0;
                Flow::Next
            }
            Command::ExtendedTest(..) => self.syntax("[[ is Bash's: write [ ... ]"),
        }
    }

    /// Does something with its streams led elsewhere.
    fn redirected<'r>(
        &mut self,
        redirects: impl Iterator<Item = &'r IoRedirect>,
        work: impl FnOnce(&mut Self) -> Flow,
    ) -> Flow {
        let before = self.streams.clone();
        for redirect in redirects {
            if let Err(why) = self.redirect(redirect) {
                self.streams = before;
                self.complain(&why);
                self.status = 1;
                return Flow::Next;
            }
        }
        let flow = work(self);
        self.streams = before;
        flow
    }

    /// Leads a stream elsewhere.
    pub(super) fn redirect(&mut self, redirect: &IoRedirect) -> Result<(), String> {
        match redirect {
            IoRedirect::File(fd, kind, target) => {
                let is_input = matches!(
                    kind,
                    IoFileRedirectKind::Read
                        | IoFileRedirectKind::ReadAndWrite
                        | IoFileRedirectKind::DuplicateInput
                );
                let fd = fd.unwrap_or(if is_input { 0 } else { 1 });
                match target {
                    IoFileRedirectTarget::Filename(word) => {
                        let name = self.one(&word.value)?;
                        self.lead_to_file(fd, kind, &name)
                    }
                    IoFileRedirectTarget::Fd(from) => self.duplicate(fd, &from.to_string()),
                    IoFileRedirectTarget::Duplicate(word) => {
                        let from = self.one(&word.value)?;
                        self.duplicate(fd, &from)
                    }
                    IoFileRedirectTarget::ProcessSubstitution(..) => {
                        Err(NO_PROCESS_SUBSTITUTION.into())
                    }
                }
            }
            IoRedirect::HereDocument(fd, here) => {
                let mut text = here.doc.value.clone();
                if here.remove_tabs {
                    let lines = text.split_inclusive('\n').map(|it| it.trim_start_matches('\t'));
                    text = lines.collect();
                }
                if here.requires_expansion {
                    text = self.here(&text)?;
                }
                self.lead_input(fd.unwrap_or(0), Input::of(text.into_bytes()))
            }
            IoRedirect::HereString(fd, word) => {
                let text = self.one(&word.value)? + "\n";
                self.lead_input(fd.unwrap_or(0), Input::of(text.into_bytes()))
            }
            IoRedirect::OutputAndError(word, appends) => {
                let name = self.one(&word.value)?;
                let kind =
                    if *appends { IoFileRedirectKind::Append } else { IoFileRedirectKind::Write };
                self.lead_to_file(1, &kind, &name)?;
                self.duplicate(2, "1")
            }
        }
    }

    fn lead_input(&mut self, fd: i32, input: Input) -> Result<(), String> {
        if fd != 0 {
            return Err(format!("{fd}: only stdin can be read from"));
        }
        self.streams.input = input;
        Ok(())
    }

    fn output(&mut self, fd: i32) -> Result<&mut Output, String> {
        match fd {
            1 => Ok(&mut self.streams.output),
            2 => Ok(&mut self.streams.error),
            _ => Err(format!("{fd}: there are the descriptors 0, 1 and 2")),
        }
    }

    fn lead_to_file(
        &mut self,
        fd: i32,
        kind: &IoFileRedirectKind,
        name: &str,
    ) -> Result<(), String> {
        let path = places::joined(&self.folder, name);
        let told = |error: io::Error| format!("{name}: {error}");
        if fd == 0 {
            let input = if name == "/dev/stdin" {
                self.streams.input.clone()
            } else {
                places::open(&path).map_err(told)?
            };
            return self.lead_input(fd, input);
        }
        let appends = matches!(kind, IoFileRedirectKind::Append);
        let to = match name {
            "/dev/null" => Output::Null,
            "/dev/stdout" => self.streams.output.clone(),
            "/dev/stderr" => self.streams.error.clone(),
            _ => {
                let mut opening = OpenOptions::new();
                opening.write(true).create(true).append(appends).truncate(!appends);
                Output::File(Rc::new(opening.open(&path).map_err(told)?))
            }
        };
        *self.output(fd)? = to;
        Ok(())
    }

    fn duplicate(&mut self, fd: i32, from: &str) -> Result<(), String> {
        let from = match from {
            "-" if fd == 0 => {
                self.streams.input = Input::Null;
                return Ok(());
            }
            "-" => Output::Null,
            "1" => self.streams.output.clone(),
            "2" => self.streams.error.clone(),
            "0" if fd == 0 => return Ok(()),
            other => return Err(format!("{other}: no such descriptor")),
        };
        *self.output(fd)? = from;
        Ok(())
    }

    fn compound(&mut self, compound: &CompoundCommand) -> Flow {
        match compound {
            CompoundCommand::BraceGroup(group) => self.list(&group.list),
            CompoundCommand::Subshell(subshell) => {
                let mut inner = self.clone();
                inner.list(&subshell.list);
                self.status = inner.end();
                Flow::Next
            }
            CompoundCommand::IfClause(clause) => {
                let flow = self.condition(&clause.condition);
                if flow != Flow::Next {
                    return flow;
                }
                if self.status == 0 {
                    return self.list(&clause.then);
                }
                for other in clause.elses.iter().flatten() {
                    if let Some(condition) = &other.condition {
                        let flow = self.condition(condition);
                        if flow != Flow::Next {
                            return flow;
                        }
                        if self.status != 0 {
                            continue;
                        }
                    }
                    return self.list(&other.body);
                }
                self.status = 0;
                Flow::Next
            }
            CompoundCommand::WhileClause(clause) => self.looped(&clause.0, true, &clause.1.list),
            CompoundCommand::UntilClause(clause) => self.looped(&clause.0, false, &clause.1.list),
            CompoundCommand::ForClause(clause) => {
                let values = match &clause.values {
                    Some(words) => {
                        match self.fields(words.iter().map(|word| word.value.as_str())) {
                            Ok(values) => values,
                            Err(why) => return self.syntax(&why),
                        }
                    }
                    None => self.positional.clone(),
                };
                self.status = 0;
                for value in values {
                    if let Err(why) = self.set(&clause.variable_name, value) {
                        return self.syntax(&why);
                    }
                    match self.list(&clause.body.list) {
                        Flow::Next | Flow::Continue(1) => {}
                        Flow::Break(1) => break,
                        flow => return outwards(flow),
                    }
                }
                Flow::Next
            }
            CompoundCommand::CaseClause(clause) => self.case(clause),
            CompoundCommand::Arithmetic(command) => self.arithmetic_command(&command.expr.value),
            CompoundCommand::ArithmeticForClause(_) => {
                self.syntax("for (( is Bash's: write while [ ... ]")
            }
            CompoundCommand::Coprocess(_) => self.syntax("coproc takes a second process"),
        }
    }

    fn arithmetic_command(&mut self, text: &str) -> Flow {
        match arithmetic::value(self, text) {
            Ok(value) => self.status = u8::from(value == 0),
            Err(why) => {
                self.complain(&why);
                self.status = 1;
            }
        }
        Flow::Next
    }

    fn condition(&mut self, list: &CompoundList) -> Flow {
        self.lenient += 1;
        let flow = self.list(list);
        self.lenient -= 1;
        flow
    }

    fn looped(&mut self, condition: &CompoundList, while_it_is: bool, body: &CompoundList) -> Flow {
        let mut status = 0;
        loop {
            match self.condition(condition) {
                Flow::Next => {}
                Flow::Break(1) => break,
                Flow::Continue(1) => continue,
                flow => return outwards(flow),
            }
            if (self.status == 0) != while_it_is {
                break;
            }
            let flow = self.list(body);
            status = self.status;
            match flow {
                Flow::Next | Flow::Continue(1) => {}
                Flow::Break(1) => break,
                flow => return outwards(flow),
            }
        }
        self.status = status;
        Flow::Next
    }

    fn case(&mut self, clause: &brush_parser::ast::CaseClauseCommand) -> Flow {
        let value = match self.one(&clause.value.value) {
            Ok(value) => value,
            Err(why) => return self.syntax(&why),
        };
        self.status = 0;
        let mut goes_in = false;
        for item in &clause.cases {
            for word in &item.patterns {
                match self.matches(&word.value, &value) {
                    Ok(matches) => goes_in |= matches,
                    Err(why) => return self.syntax(&why),
                }
            }
            if goes_in {
                if let Some(list) = &item.cmd {
                    let flow = self.list(list);
                    if flow != Flow::Next {
                        return flow;
                    }
                }
                match item.post_action {
                    CaseItemPostAction::ExitCase => return Flow::Next,
                    CaseItemPostAction::UnconditionallyExecuteNextCaseItem => {}
                    CaseItemPostAction::ContinueEvaluatingCases => goes_in = false,
                }
            }
        }
        Flow::Next
    }

    fn simple(&mut self, simple: &SimpleCommand) -> Flow {
        let (mut assignments, mut redirects) = (Vec::new(), Vec::new());
        let mut words: Vec<&str> = Vec::new();
        let before = simple.prefix.iter().flat_map(|prefix| &prefix.0);
        for item in before {
            match item {
                CommandPrefixOrSuffixItem::AssignmentWord(assignment, _) => {
                    assignments.push(assignment);
                }
                CommandPrefixOrSuffixItem::IoRedirect(redirect) => redirects.push(redirect),
                _ => return self.syntax("this is no command"),
            }
        }
        words.extend(simple.word_or_name.iter().map(|word| word.value.as_str()));
        for item in simple.suffix.iter().flat_map(|suffix| &suffix.0) {
            match item {
                CommandPrefixOrSuffixItem::Word(word)
                | CommandPrefixOrSuffixItem::AssignmentWord(_, word) => words.push(&word.value),
                CommandPrefixOrSuffixItem::IoRedirect(redirect) => redirects.push(redirect),
                CommandPrefixOrSuffixItem::ProcessSubstitution(..) => {
                    return self.syntax(NO_PROCESS_SUBSTITUTION);
                }
            }
        }
        self.substituted = None;
        let before = self.status;
        let words = match self.fields(words.into_iter()) {
            Ok(words) => words,
            Err(why) => return self.syntax(&why),
        };
        let Some((name, args)) = words.split_first() else {
            for assignment in assignments {
                if let Err(why) = self.assign(assignment) {
                    return self.syntax(&why);
                }
            }
            self.status = self.substituted.unwrap_or(0);
            return self.redirected(redirects.into_iter(), |_| Flow::Next);
        };
        if self.options.trace {
            let line = format!("+ {}\n", words.join(" "));
            let _ = self.streams.error.write_all(line.as_bytes());
        }
        if name == "exec" && args.is_empty() {
            // The shell's own streams, from here on.
            for redirect in redirects {
                if let Err(why) = self.redirect(redirect) {
                    return self.syntax(&why);
                }
            }
            return Flow::Next;
        }
        self.status = before;
        self.redirected(redirects.into_iter(), |shell| shell.call(&assignments, name, args))
    }

    /// Runs a command by its name, with variables of its own.
    fn call(&mut self, assignments: &[&Assignment], name: &str, args: &[String]) -> Flow {
        let aside: Vec<(String, Option<Variable>)> = assignments
            .iter()
            .map(|it| variable_name(it))
            .map(|name| (name.to_owned(), self.variables.get(name).cloned()))
            .collect();
        for assignment in assignments {
            if let Err(why) = self.assign(assignment) {
                return self.syntax(&why);
            }
            if let Some(variable) = self.variables.get_mut(variable_name(assignment)) {
                variable.exported = true;
            }
        }
        let flow = self.run(name, args);
        for (name, variable) in aside {
            match variable {
                Some(variable) => drop(self.variables.insert(name, variable)),
                None => drop(self.variables.remove(&name)),
            }
        }
        flow
    }

    pub(super) fn run(&mut self, name: &str, args: &[String]) -> Flow {
        if let Some(body) = self.functions.get(name).cloned() {
            return self.function(&body, args);
        }
        if let Some(builtin) = builtins::builtin(name) {
            return match builtin(self, args) {
                Ok(flow) => flow,
                Err(why) => {
                    self.complain(&format!("{name}: {why}"));
                    self.status = 2;
                    Flow::Next
                }
            };
        }
        let Some(program) = tools::program(name) else {
            let hint = match name {
                "[[" => "it is Bash's: write [ ... ]",
                _ => "this shell runs its own programs only; \"help\" lists them",
            };
            self.complain(&format!("{name}: not found ({hint})"));
            self.status = 127;
            return Flow::Next;
        };
        let variables = self.environment();
        let folder = self.folder.clone();
        let streams = self.streams.clone();
        let mut call = Call { name, args, variables: &variables, folder: &folder, streams };
        self.status = tools::run(program, &mut call);
        Flow::Next
    }

    fn function(&mut self, body: &FunctionBody, args: &[String]) -> Flow {
        if let Err(why) = self.deeper() {
            return self.syntax(&why);
        }
        let outer = std::mem::replace(&mut self.positional, args.to_vec());
        self.locals.push(Vec::new());
        let redirects = body.1.iter().flat_map(|list| &list.0);
        let flow = self.redirected(redirects, |shell| shell.compound(&body.0));
        for (name, variable) in self.locals.pop().into_iter().flatten().rev() {
            match variable {
                Some(variable) => drop(self.variables.insert(name, variable)),
                None => drop(self.variables.remove(&name)),
            }
        }
        self.positional = outer;
        self.depth -= 1;
        if flow == Flow::Return { Flow::Next } else { flow }
    }

    /// One step deeper.
    fn deeper(&mut self) -> Result<(), String> {
        if self.depth >= DEEPEST {
            return Err(format!("calls are more than {DEEPEST} deep"));
        }
        self.depth += 1;
        Ok(())
    }

    pub(super) fn has_function(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    pub(super) fn forget_function(&mut self, name: &str) {
        self.functions.remove(name);
    }

    pub(super) fn assign(&mut self, assignment: &Assignment) -> Result<(), String> {
        let AssignmentName::VariableName(name) = &assignment.name else {
            return Err("arrays are Bash's: write several variables".into());
        };
        let AssignmentValue::Scalar(word) = &assignment.value else {
            return Err("arrays are Bash's: write several variables".into());
        };
        let mut value = self.one(&word.value)?;
        if assignment.append {
            value = self.get(name).unwrap_or_default().to_owned() + &value;
        }
        self.set(name, value)
    }

    /// Runs a text in a subshell, and gives what it wrote without the ends of its last lines.
    pub(super) fn substitute(&mut self, text: &str) -> Result<String, String> {
        self.deeper()?;
        let mut inner = self.clone();
        let (output, kept) = Output::kept();
        inner.streams.output = output;
        inner.at_exit = None;
        super::run_text(&mut inner, text);
        self.status = inner.end();
        self.substituted = Some(self.status);
        self.depth -= 1;
        let bytes = kept.take();
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
    }
}

fn variable_name(assignment: &Assignment) -> &str {
    match &assignment.name {
        AssignmentName::VariableName(name) | AssignmentName::ArrayElementName(name, _) => name,
    }
}

/// As the loop around sees it.
fn outwards(flow: Flow) -> Flow {
    match flow {
        Flow::Break(loops) => Flow::Break(loops - 1),
        Flow::Continue(loops) => Flow::Continue(loops - 1),
        flow => flow,
    }
}
