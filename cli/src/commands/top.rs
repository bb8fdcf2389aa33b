//! `rvm top`: the processes of a container in the columns of `ps` (procps).
//!
//! No `ps` runs: what the kernel says of them comes from where the workload is, and is laid out here. So the columns are the
//! same in both modes, and a name that a process has chosen for itself reaches the terminal without control characters.

mod columns;

use anyhow::{Result, bail};
use jiff::Zoned;
use rvm_engine::{Engine, Processes};

use self::columns::{Column, Context};
use crate::args::Top;
use crate::output::{self, Table};

/// `ps -f`.
const FULL: &str = "uid,pid,ppid,c,stime,tty,time,cmd";

/// `ps u`.
const USER: &str = "user,pid,%cpu,%mem,vsz,rss,tty,stat,start,bsdtime,command";

pub(super) fn run(engine: &Engine, arguments: &Top) -> Result<u8> {
    // What cannot be shown is refused whether or not there is such a container.
    let columns = parse(&arguments.options)?;
    let processes = engine.processes(&arguments.container)?;
    print(&columns, &processes)?;
    if processes.more > 0 {
        output::note(&format!("{} more processes are not shown", processes.more));
    }
    Ok(0)
}

fn print(columns: &[Column], processes: &Processes) -> Result<()> {
    let titles: Vec<&str> = columns.iter().map(|column| column.title.as_str()).collect();
    let mut table = if titles.iter().all(|title| title.is_empty()) {
        Table::plain()
    } else {
        Table::new(&titles)
    };
    let context = Context {
        now: Zoned::now(),
        memory_bytes: processes.memory_bytes,
    };
    for process in &processes.list {
        table.row(
            columns
                .iter()
                .map(|column| output::single_line(&column.show(process, &context))),
        );
    }
    table.print()
}

/// The columns that options of `ps` ask for. Which processes they select does not matter: all of the container are shown.
fn parse(options: &[String]) -> Result<Vec<Column>> {
    let (mut chosen, mut format) = (Vec::new(), FULL);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let letters = option.strip_prefix('-').unwrap_or(option);
        // The rest of the word is a list of columns, or the next word.
        if let Some((_, list)) = letters.split_once('o').filter(|(flags, _)| selects(flags)) {
            let list = if list.is_empty() {
                options.next().map(String::as_str)
            } else {
                Some(list)
            };
            chosen.extend(columns::parse(list.unwrap_or_default())?);
        } else if !letters.is_empty() && selects(letters) {
            match letters.chars().rfind(|letter| "fu".contains(*letter)) {
                Some('u') => format = USER,
                Some(_) => format = FULL,
                None => {}
            }
        } else {
            bail!(
                "{option:?} is not understood: there are -ef, aux, and -o or -eo with a list of the columns {}",
                columns::names()
            );
        }
    }
    if chosen.is_empty() {
        columns::parse(format)
    } else {
        Ok(chosen)
    }
}

/// Whether these are letters that `ps` has for all processes, for wide output, for the full and the user's format.
fn selects(letters: &str) -> bool {
    letters.chars().all(|letter| "Aaexdwfu".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_ps() {
        let check = |options: &[&str], expected: &str| {
            let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            match parse(&options) {
                Ok(columns) => {
                    let titles: Vec<_> = columns.into_iter().map(|column| column.title).collect();
                    assert_eq!(titles.join(" "), expected, "{options:?}");
                }
                Err(error) => assert!(error.to_string().contains(expected), "{options:?}: {error}"),
            }
        };
        let (full, user) = (
            "UID PID PPID C STIME TTY TIME CMD",
            "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
        );
        for options in [&[][..], &["-ef"], &["-e", "-f"], &["-A"], &["-efww"]] {
            check(options, full);
        }
        for options in [["aux"], ["-aux"], ["u"]] {
            check(&options, user);
        }
        check(&["-o", "pid,comm"], "PID COMMAND");
        check(&["-eo", "pid", "-oargs"], "PID COMMAND");
        check(&["-eo", "pid=NUMBER,comm="], "NUMBER ");
        check(&["-o"], "columns");
        check(&["-o", "pid,,comm"], "columns");
        check(&["-eo", "pid,wchan"], "wchan");
        check(&["-l"], "\"-l\"");
        check(&["--sort=pid"], "--sort=pid");
    }
}
