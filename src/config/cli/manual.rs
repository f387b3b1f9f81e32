//! `llmproxy completions` and `llmproxy man`: what the command line says of itself, for shells and
//! for readers. Made from the definitions that it is parsed by, so that it cannot be out of date.

use super::{Cli, Command, Printout, FINE, UNUSABLE};
use clap::{CommandFactory, ValueEnum};
use clap_complete::{generate, Shell};
use clap_mangen::Man;
use std::io;

const NAME: &str = "llmproxy";

/// A shell that completes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Completing {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn completions(shell: Completing) -> Command {
    let shell = match shell {
        Completing::Bash => Shell::Bash,
        Completing::Zsh => Shell::Zsh,
        Completing::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    generate(shell, &mut Cli::command(), NAME, &mut text);
    printed(Ok(text))
}

pub(super) fn man() -> Command {
    let mut all = Cli::command();
    // The names of commands below others are known after that.
    all.build();
    printed(page(&all))
}

fn printed(text: io::Result<Vec<u8>>) -> Command {
    let text = text.map(|text| String::from_utf8_lossy(&text).into_owned());
    Command::Print(match text {
        Ok(stdout) => Printout { stdout, stderr: String::new(), code: FINE },
        Err(error) => {
            let stderr = format!("{NAME}: {error}\n");
            Printout { stdout: String::new(), stderr, code: UNUSABLE }
        }
    })
}

/// One page for all commands: each has a section of its own behind what is said of the whole.
fn page(all: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let man = Man::new(all.clone());
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_options_section(&mut text)?;
    extra(all, &mut text)?;
    sections(all, NAME, &mut text)?;
    man.render_version_section(&mut text)?;
    Ok(text)
}

fn sections(above: &clap::Command, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
    for command in above.get_subcommands().filter(|command| command.get_name() != "help") {
        let path = format!("{path} {}", command.get_name());
        text.extend_from_slice(format!(".SH \"{}\"\n", path.to_uppercase()).as_bytes());
        let mut section = Vec::new();
        let man = Man::new(command.clone());
        man.render_description_section(&mut section)?;
        man.render_synopsis_section(&mut section)?;
        if command.get_arguments().next().is_some() {
            man.render_options_section(&mut section)?;
        }
        extra(command, &mut section)?;
        let section = String::from_utf8_lossy(&section).replace("\n.SH ", "\n.SS ");
        text.extend_from_slice(section.as_bytes());
        sections(command, &path, text)?;
    }
    Ok(())
}

/// What stands behind the help of a command are its exit codes.
fn extra(command: &clap::Command, text: &mut Vec<u8>) -> io::Result<()> {
    let mut extra = Vec::new();
    if command.get_after_help().is_some() {
        Man::new(command.clone()).render_extra_section(&mut extra)?;
    }
    let extra = String::from_utf8_lossy(&extra).replacen(".SH EXTRA", ".SH \"EXIT CODES\"", 1);
    text.extend_from_slice(extra.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(command: Command) -> String {
        match command {
            Command::Print(Printout { stdout, code: FINE, .. }) => stdout,
            other => panic!("{other:?}"),
        }
    }

    /// Every name that can be typed: of commands, and of options in their long form.
    fn names(command: &clap::Command, found: &mut (Vec<String>, Vec<String>)) {
        let long = command.get_arguments().filter_map(|argument| argument.get_long());
        found.1.extend(long.map(str::to_owned));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            found.0.push(below.get_name().to_owned());
            names(below, found);
        }
    }

    fn all_names() -> (Vec<String>, Vec<String>) {
        let (mut all, mut found) = (Cli::command(), Default::default());
        all.build();
        names(&all, &mut found);
        assert!(found.0.contains(&"replay".to_owned()), "{found:?}");
        assert!(found.1.contains(&"dead-letters".to_owned()), "{found:?}");
        found
    }

    /// Catches: a command or an option that a shell does not complete.
    #[test]
    fn each_shell_completes_each_name() {
        let (commands, options) = all_names();
        let shells = [(Completing::Bash, "--"), (Completing::Zsh, "--"), (Completing::Fish, "-l ")];
        for (shell, before) in shells {
            let text = text_of(completions(shell));
            for command in &commands {
                assert!(text.contains(command), "{shell:?}: {command}");
            }
            for option in &options {
                assert!(text.contains(&format!("{before}{option}")), "{shell:?}: {option}");
            }
        }
    }

    /// Catches: a command or an option that the page leaves out, and a page of one command's
    /// sections that lie beside those of the others.
    #[test]
    fn the_page_has_each_command_with_its_options() {
        let (commands, options) = all_names();
        let text = text_of(man()).replace("\\-", "-");
        assert!(text.contains(".TH llmproxy 1"), "{}", text.lines().next().unwrap());
        for command in &commands {
            let heading = format!(" {}\"\n", command.to_uppercase());
            assert!(text.contains(&heading), "{command}:\n{text}");
        }
        for option in &options {
            assert!(text.contains(&format!("--{option}")), "{option}");
        }
        let (_, check) = text.split_once(".SH \"LLMPROXY CHECK\"\n").unwrap();
        let (check, _) = check.split_once("\n.SH ").unwrap();
        assert!(check.contains("--strict") && check.contains("would start"), "{check}");
        assert!(!check.contains("--dead-letters"), "{check}");
        let (_, replay) = text.split_once(".SH \"LLMPROXY SPOOL REPLAY\"\n").unwrap();
        let (replay, _) = replay.split_once("\n.SH ").unwrap();
        assert!(replay.contains("--dead-letters"), "{replay}");
        assert!(!replay.contains("EXIT CODES"), "nothing is said of them: {replay}");
    }
}
