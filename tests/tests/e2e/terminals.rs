//! Programs in terminals, and people who come and go.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::terminal::Seat;
use rvm_tests::wait::wait_until;

/// What a program sees of its terminal once that has a size.
const SIZE: &str = "until [ \"$(stty size)\" = \"$S\" ]; do sleep 0.1; done; echo \"[$(stty size)]\"\n";

fn exec(rvm: &Rvm, arguments: &[&str]) -> Result<Output> {
    rvm.call([&["exec"], arguments].concat())
}

/// Waits until keys go to the container, and then until it answers.
fn answers(seat: &mut Seat) -> Result<()> {
    wait_until("the terminal is raw", LIMIT, || seat.is_raw())?;
    seat.types("echo a\"nsw\"er\n")?;
    seat.hears("answer\r\n")
}

fn has_size(seat: &mut Seat, size: &str) -> Result<()> {
    seat.types(&SIZE.replace("$S", size))?;
    seat.hears(&format!("[{size}]\r\n"))
}

both_modes! {
    fn a_shell_is_left_and_found_again(rvm) {
        let run = rvm.run_command(["-it", "--name", "box", BUSYBOX, "sh"])?;
        let mut seat = Seat::start(&run, 30, 100)?;
        seat.hears("# ")?;
        answers(&mut seat)?;
        seat.types("tty; stty size; echo \"[$TERM]\"; [ -t 0 -a -t 1 -a -t 2 ] && echo three; echo here >/dev/console\n")?;
        for text in ["/dev/pts/0\r\n", "30 100\r\n", "[xterm]\r\n", "three\r\n", "here\r\n"] {
            seat.hears(text)?;
        }
        seat.resize(40, 120)?;
        has_size(&mut seat, "40 120")?;
        // Whether or not the program is there already, the shell is told the same.
        seat.types("sh -c 'echo sleep\"ing\"; exec sleep 1000'\n")?;
        seat.hears("sleeping\r\n")?;
        seat.types("\x03")?;
        seat.types("echo \"<$?>\"\n")?;
        seat.hears("<130>\r\n")?;

        // Beside it, others with terminals of their own.
        let mut beside = Seat::start(&rvm.command(["exec", "-it", "box", "sh"])?, 20, 60)?;
        answers(&mut beside)?;
        beside.types("tty; stty size; echo \"[$TERM]\"\n")?;
        for text in ["/dev/pts/1\r\n", "20 60\r\n", "[xterm]\r\n"] {
            beside.hears(text)?;
        }
        beside.resize(21, 61)?;
        has_size(&mut beside, "21 61")?;
        has_size(&mut seat, "40 120")?;
        beside.types("exit 3\n")?;
        beside.finish()?.code(3);
        let mut left = Seat::start(&rvm.command(["exec", "-it", "--detach-keys", "ctrl-x,x", "box", "sh", "-c", "read w; sleep 1000"])?, 20, 60)?;
        wait_until("the terminal is raw", LIMIT, || left.is_raw())?;
        left.types("\x18x")?;
        left.finish()?.ok();
        let output = exec(rvm, &["-t", "-u", "www", "box", "sh", "-c", "echo out; echo err >&2; echo >$(tty); ls -ln $(tty)"])?.ok();
        let text = output.text();
        ensure!(text.starts_with("out\r\nerr\r\n\r\ncrw--w----") && text.contains(" 33 ") && text.contains(" 5 "), "{text:?}");
        assert_eq!(output.errors(), "");
        assert_eq!(exec(rvm, &["box", "sh", "-c", "tty; echo \"[$TERM]\""])?.text(), "not a tty\n[]");
        exec(rvm, &["-it", "box", "true"])?.failed(1, &["the input device is not a TTY"]);

        // It is left by keys, by a signal, and by closing the window.
        seat.types("\x10\x11")?;
        seat.hears("read escape sequence")?;
        seat.finish()?.ok();
        let attach = |rows| -> Result<Seat> {
            let mut seat = Seat::start(&rvm.command(["attach", "box"])?, rows, 80)?;
            answers(&mut seat)?;
            Ok(seat)
        };
        let mut seat = attach(25)?;
        has_size(&mut seat, "25 80")?;
        seat.signal(Signal::TERM)?;
        seat.finish()?.code(143);
        // The command sees the end of its input, or the signal first.
        let gone = attach(24)?.hang_up()?;
        ensure!([0, 129].contains(&gone.code), "{}", gone.describe());
        rvm.call(["attach", "box"])?.failed(1, &["the input device is not a TTY"]);
        // Two see the same; the one that came last has the size.
        let (mut first, mut second) = (attach(23)?, attach(22)?);
        has_size(&mut first, "22 80")?;
        second.hears("[22 80]\r\n")?;
        first.resize(21, 70)?;
        has_size(&mut second, "21 70")?;
        second.types("exit 7\n")?;
        first.finish()?.code(7);
        second.finish()?.code(7);
        let shown = rvm.call(["inspect", "--format", "{{.Config.Tty}} {{.Config.OpenStdin}} {{json .HostConfig.ConsoleSize}}", "box"])?;
        assert_eq!(shown.ok().text(), "true true [30,100]");
        let log = rvm.call(["logs", "box"])?.ok();
        assert!(log.text().contains("/dev/pts/0\r\n30 100\r\n") && log.errors().is_empty(), "{}", log.describe());
        rvm.call(["rm", "box"])?.ok();
    }

    fn output_comes_whole_and_the_size_before_the_program(rvm) {
        let output = rvm.run(["-t", BUSYBOX, "sh", "-c", "seq 1 30000; echo err >&2; exit 9"])?.code(9);
        let mut expected: String = (1..=30000).map(|number| format!("{number}\r\n")).collect();
        expected.push_str("err\r\n");
        assert!(output.stdout == expected.as_bytes(), "{}", output.describe());
        rvm.run(["-it", BUSYBOX, "true"])?.failed(1, &["the input device is not a TTY"]);

        // Of a container that was made where there was no terminal.
        let script = "until [ \"$(stty size)\" = '25 90' ]; do sleep 0.1; done; echo ready; read word; echo \"<$word>\"; exit 5";
        let isolation = rvm.isolation().name();
        rvm.call(["create", "--isolation", isolation, "-it", "--name", "later", BUSYBOX, "sh", "-c", script])?.ok();
        for _ in 0..2 {
            let mut seat = Seat::start(&rvm.command(["start", "-ai", "later"])?, 25, 90)?;
            seat.hears("ready\r\n")?;
            seat.types("word\n")?;
            seat.hears("<word>\r\n")?;
            seat.finish()?.code(5);
        }
        rvm.call(["rm", "later"])?.ok();
    }
}
