//! A PHP application and MariaDB, each in either mode, on volumes that go from one mode to the other.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::command::{LIMIT, tool};
use rvm_tests::rvm::{Rvm, alone, scratch};
use rvm_tests::wait::wait_until;

use crate::{answers, background, clear, exec, programs};

const APPLICATION: &str = include_str!("site.d/index.php");

const SCHEMA: &str = "CREATE DATABASE site; CREATE TABLE site.entries \
    (number INT AUTO_INCREMENT PRIMARY KEY, author VARCHAR(80) NOT NULL); \
    CREATE USER site@'%' IDENTIFIED BY 'secret'; GRANT ALL ON site.* TO site@'%'";

const ADDRESS: &str = "http://127.0.0.1:8080/";

/// Starts a database in one mode and the application in one.
fn start(database: &Rvm, application: &Rvm, site: &str) -> Result<()> {
    let server = "install -d -o mysql /run/mysqld && exec mariadbd --user=mysql --bind-address=0.0.0.0";
    let flags = ["--network", "site", "-v", "entries:/var/lib/mysql"];
    let command = ["packages.layout:mariadb", "sh", "-c", server];
    background(database, "db", &[&flags[..], &command].concat())?;
    answers(database, "db", &["mariadb", "-Ne", "SELECT 'is up'"], "is up")?;
    let flags = [
        "--network",
        "site",
        "-p",
        "8080:80",
        "-v",
        site,
        "-v",
        "uploads:/srv/uploads",
    ];
    let command = ["packages.layout:php", "php", "-S", "0.0.0.0:80", "-t", "/srv/www"];
    background(application, "www", &[&flags[..], &command].concat())?;
    wait_until("it listens", LIMIT, || Ok(tool("curl", &["-s", ADDRESS]).is_ok()))
}

fn body(rvm: &Rvm) -> Result<()> {
    let other = rvm.in_the_other_mode();
    let files = scratch()?.join("site");
    fs::create_dir_all(&files)?;
    fs::write(files.join("index.php"), APPLICATION)?;
    let site = format!("{}:/srv/www:ro", files.display());
    rvm.call(["network", "create", "site"])?.ok();
    let mut wanted = String::new();
    let mixes = [(&other, &other), (rvm, &other), (&other, rvm), (rvm, rvm)];
    for (number, (database, application)) in mixes.into_iter().enumerate() {
        let author = format!(
            "{}-of-{}",
            application.isolation().name(),
            database.isolation().name()
        );
        start(database, application, &site).with_context(|| author.clone())?;
        if number == 0 {
            exec(database, "db", &["mariadb", "-e", SCHEMA])?.ok();
        }
        // All that the mixes before have left, and then this one's own.
        let before = tool("curl", &["-sS", "--fail-with-body", ADDRESS]).with_context(|| author.clone())?;
        assert_eq!(before, wanted.trim_end(), "{author}");
        wanted += &format!("{} {author}: uploaded by {author}\n", number + 1);
        let field = format!("author={author}");
        let after = tool("curl", &["-sS", "--fail-with-body", "-d", &field, ADDRESS])
            .with_context(|| author.clone())?;
        assert_eq!(after, wanted.trim_end(), "{author}");
        if number % 2 == 0 {
            rvm.call(["stop", "-t", "60", "db"])?.ok();
            let code = rvm
                .call(["inspect", "--format", "{{.State.ExitCode}}", "db"])?
                .ok();
            ensure!(
                code.text() == "0",
                "{author}: the database ended with {}",
                code.text()
            );
        }
        rvm.remove_containers()?;
    }
    Ok(())
}

#[test]
fn an_application_and_its_database_in_any_mix_of_modes() -> Result<()> {
    let _alone = alone();
    let rvm = programs()?.connected();
    clear(&rvm)?;
    let outcome = body(&rvm);
    let cleared = clear(&rvm);
    outcome?;
    cleared
}
