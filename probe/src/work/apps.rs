//! What people run, in small: a database, a key-value server with a log, a web server of files, a build. All of it is in this
//! program, so that it is the same in any image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::{Connection, params};
use rvm_probe::network::{self, Client, HTTP_CONNECTIONS};

use super::{Measure, timed};

/// Transactions, and rows that each adds.
const TRANSACTIONS: u64 = 100;
const ROWS: u64 = 5;
/// Queries by an index.
const QUERIES: u64 = 200;
/// Requests that set a key, and as many that ask for it.
const KEYS: u64 = 1000;
/// HTTP requests: of the shared client.
const REQUESTS: u64 = 1000;
/// Source files.
const UNITS: u64 = 40;
/// Lines of each.
const LINES: u64 = 500;

/// Removed with all that is in it, whichever way the work ends.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // The container goes as well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn measure(directory: &str) -> Result<Vec<Measure>> {
    let directory = Directory(Path::new(directory).join(".rvm-apps"));
    fs::create_dir(&directory.0).with_context(|| format!("cannot make {}", directory.0.display()))?;
    let place = directory.0.as_path();
    Ok(vec![
        timed("database", TRANSACTIONS * ROWS + QUERIES, || {
            database(&place.join("database"))
        })?,
        timed("key-value", 2 * KEYS, || key_value(&place.join("log")))?,
        timed("web", REQUESTS, || web(&place.join("page")))?,
        timed("build", UNITS, || build(place))?,
    ])
}

/// Transactions that are waited for until they are on the disk, and queries over ranges; the sum of what these find.
fn database(path: &Path) -> Result<u64> {
    let mut database = Connection::open(path)?;
    database.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE items (key INTEGER PRIMARY KEY, value INTEGER NOT NULL, text TEXT NOT NULL);
         CREATE INDEX by_value ON items (value);",
    )?;
    for number in 0..TRANSACTIONS {
        let transaction = database.transaction()?;
        for row in 0..ROWS {
            let key = number * ROWS + row;
            let value = key * 7919 % 1000;
            transaction
                .prepare("INSERT INTO items VALUES (?1, ?2, ?3)")?
                .execute(params![
                    i64::try_from(key)?,
                    i64::try_from(value)?,
                    format!("item {key}")
                ])?;
        }
        transaction.commit()?;
    }
    let mut sum = 0;
    let mut query = database
        .prepare("SELECT count(*) + coalesce(sum(key), 0) FROM items WHERE value BETWEEN ?1 AND ?1 + 50")?;
    for number in 0..i64::try_from(QUERIES)? {
        sum += query.query_row([number * 5], |row| row.get::<_, i64>(0))?;
    }
    Ok(u64::try_from(sum)?)
}

/// A server that keeps keys in memory and writes each change to a log before it answers; requests that are answered right. In
/// the end the log has to give the same again.
fn key_value(log: &Path) -> Result<u64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let file = File::create(log)?;
    let server = thread::spawn(move || serve_keys(&listener, file));
    let right = ask(TcpStream::connect(address)?)?;
    let Ok(kept) = server.join() else {
        bail!("the server has failed")
    };
    let mut again = BTreeMap::new();
    for line in BufReader::new(File::open(log)?).lines() {
        let line = line?;
        let (key, value) = line
            .split_once(' ')
            .context("the log has a line of something else")?;
        again.insert(key.to_owned(), value.to_owned());
    }
    ensure!(kept? == again, "the log does not give what the server had");
    Ok(right)
}

fn serve_keys(listener: &TcpListener, mut log: File) -> Result<BTreeMap<String, String>> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut keys = BTreeMap::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["set", key, value] => {
                log.write_all(format!("{key} {value}\n").as_bytes())?;
                keys.insert((*key).to_owned(), (*value).to_owned());
                stream.write_all(b"ok\n")?;
            }
            ["get", key] => {
                let value = keys.get(*key).map_or("", String::as_str);
                stream.write_all(format!("{value}\n").as_bytes())?;
            }
            _ => bail!("no such request: {line:?}"),
        }
    }
    log.sync_data()?;
    Ok(keys)
}

fn ask(mut stream: TcpStream) -> Result<u64> {
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let mut right = 0;
    let mut request = |request: String, expected: &str| -> Result<()> {
        stream.write_all(request.as_bytes())?;
        let answer = answers.next().context("the server has gone")??;
        right += u64::from(answer == expected);
        Ok(())
    };
    for number in 0..KEYS {
        request(format!("set key-{number} {}\n", number * 3), "ok")?;
    }
    for number in 0..KEYS {
        let number = number * 7 % KEYS;
        request(format!("get key-{number}\n"), &(number * 3).to_string())?;
    }
    Ok(right)
}

/// A server that reads a file for each request.
fn web(page: &Path) -> Result<u64> {
    let block = network::block();
    fs::write(page, block.get(..network::BODY).unwrap_or_default())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = Client::new(listener.local_addr()?);
    network::serve(listener, Some(page.to_owned()));
    Ok(client.http(HTTP_CONNECTIONS)?.0)
}

/// Source files, each translated by a process of its own, and what comes of them put together; units that are right.
fn build(directory: &Path) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut right = 0;
    let mut whole = File::create(directory.join("program"))?;
    for unit in 0..UNITS {
        let (source, object) = (
            directory.join(format!("{unit}.source")),
            directory.join(format!("{unit}.object")),
        );
        let text: String = (0..LINES)
            .map(|line| {
                format!(
                    "let name_{line} = {unit} + name_{} * {line};\n",
                    line * 31 % LINES
                )
            })
            .collect();
        fs::write(&source, &text)?;
        let status = Command::new(&program)
            .args(["work", "translate"])
            .args([&source, &object])
            .stdin(Stdio::null())
            .status()?;
        ensure!(status.success(), "a translation has failed");
        let object = fs::read(&object)?;
        // Eight words of each line, with eight bytes for each.
        right += u64::from(u64::try_from(object.len())? == LINES * 8 * 8);
        whole.write_all(&object)?;
    }
    whole.sync_all()?;
    Ok(right)
}

/// Takes a source apart, has a number for each of its words, and writes these.
pub(super) fn translate(source: &str, object: &str) -> Result<()> {
    let text = fs::read_to_string(source)?;
    let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
    let mut code = Vec::new();
    for word in text.split_whitespace() {
        let next = u64::try_from(numbers.len())?;
        let number = numbers.entry(word).or_insert(next);
        code.extend_from_slice(&number.to_le_bytes());
    }
    fs::write(object, code)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> Directory {
        let directory = std::env::temp_dir().join(format!("rvm-probe-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Directory(directory)
    }

    /// The sum is that of a program in another language with another build of the library.
    #[test]
    fn the_database_finds_what_it_should() {
        let directory = directory("database");
        assert_eq!(database(&directory.0.join("database")).unwrap(), 1_248_356);
    }

    #[test]
    fn servers_answer_right() {
        let directory = directory("servers");
        assert_eq!(key_value(&directory.0.join("log")).unwrap(), 2 * KEYS);
        assert_eq!(web(&directory.0.join("page")).unwrap(), REQUESTS);
    }

    #[test]
    fn words_become_numbers() {
        let directory = directory("translate");
        let (source, object) = (directory.0.join("source"), directory.0.join("object"));
        fs::write(&source, "a b a").unwrap();
        translate(source.to_str().unwrap(), object.to_str().unwrap()).unwrap();
        let expected: Vec<u8> = [0_u64, 1, 0]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        assert_eq!(fs::read(object).unwrap(), expected);
    }
}
