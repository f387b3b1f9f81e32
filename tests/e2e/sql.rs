//! Records in SQL.

use crate::clients::is_there;
use crate::harness::{MariaDb, Postgres, Redis};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Catches: a harness whose servers lose what they were told over a stop, or do not come back.
#[test]
fn the_servers_of_the_tests_keep_their_data_over_a_stop() {
    let found = Redis::is_there() && MariaDb::is_there() && Postgres::is_there();
    if !is_there("servers", found) {
        return;
    }
    let mut redis = Redis::start();
    let said = |redis: &Redis, word: &str| {
        let mut stream = TcpStream::connect(redis.addr()).unwrap();
        stream.write_all(word.as_bytes()).unwrap();
        let mut said = vec![0; 100];
        let n = stream.read(&mut said).unwrap();
        String::from_utf8_lossy(&said[..n]).into_owned()
    };
    assert_eq!(said(&redis, "SET a 7\r\n"), "+OK\r\n");
    redis.kill();
    redis.start_again();
    assert_eq!(said(&redis, "GET a\r\n"), "$1\r\n7\r\n");

    let mut maria = MariaDb::start();
    maria.query("CREATE TABLE t (a INT)");
    maria.query("INSERT INTO t VALUES (7)");
    maria.stop();
    maria.start_again();
    assert_eq!(maria.query("SELECT * FROM t"), [[Some("7".to_owned())]]);

    let mut postgres = Postgres::start();
    postgres.query("CREATE TABLE t (a INT); INSERT INTO t VALUES (7)");
    postgres.stop();
    postgres.start_again();
    assert_eq!(postgres.query("SELECT * FROM t"), [[Some("7".to_owned())]]);
}
