//! How databases are reached, and what is said where one cannot be used: tables, logins, TLS,
//! sockets, several hosts.

use crate::clients::is_there;
use crate::harness::scratch::Scratch;
use crate::harness::services::PASSWORD;
use crate::harness::{await_until, Config, Engine, MariaDb, Postgres, Proxy, SOON};
use crate::rig::CHAT;
use crate::sql::{open, open_table, records, send, Server, LIMIT};
use llmproxy::usage::reporter::Tried;
use std::time::Instant;

/// Catches: a table that keeps two of ten records, in silence, since their ids are cut.
#[test]
fn mariadb_refuses_a_table_that_would_take_one_record_for_another() {
    refuses_narrow_ids::<MariaDb>(&[
        "CREATE TABLE rows_ (request_id VARCHAR(8) UNIQUE, total_tokens INT)",
        "CREATE TABLE rows_ (request_id BINARY(16) UNIQUE, total_tokens INT)",
        "CREATE TABLE rows_ (request_id VARCHAR(64), total_tokens INT, UNIQUE k (request_id(8)))",
        "CREATE TABLE rows_ (request_id VARCHAR(64), model VARCHAR(9), UNIQUE k (model, request_id(8)))",
        "CREATE TABLE rows_ (request_id BIGINT UNIQUE, total_tokens INT)",
    ]);
}

#[test]
fn postgres_refuses_a_table_that_would_take_one_record_for_another() {
    refuses_narrow_ids::<Postgres>(&[
        "CREATE TABLE rows_ (request_id VARCHAR(8) UNIQUE, total_tokens INT)",
        "CREATE TABLE rows_ (request_id CHAR(31) UNIQUE, total_tokens INT)",
        "CREATE DOMAIN short AS VARCHAR(8); CREATE TABLE rows_ (request_id short UNIQUE)",
        "CREATE TABLE rows_ (request_id \"char\" UNIQUE, total_tokens INT)",
    ]);
}

/// Catches: an index that refuses records that are sent twice, and gives them up so; and one that
/// is refused though it does no harm.
#[test]
fn postgres_refuses_an_index_by_which_an_id_cannot_be_found() {
    let table = "CREATE TABLE rows_ (request_id TEXT, model TEXT, total_tokens INT)";
    let unique = format!("{table}; CREATE UNIQUE INDEX i ON rows_");
    refuses_narrow_ids::<Postgres>(&[
        &format!("{unique} (lower(request_id))"),
        &format!("{unique} (model, (left(request_id, 8)))"),
        &format!("{unique} (request_id) WHERE total_tokens > 0"),
    ]);
    if !is_there("postgres", Postgres::is_there()) {
        return;
    }
    let server = Postgres::start();
    let whole = "; CREATE UNIQUE INDEX w ON rows_ (request_id)";
    for made in [
        format!("{unique} (request_id) WHERE total_tokens > 0{whole}"),
        format!("{unique} (lower(request_id)){whole}"),
        format!("{unique} (request_id, lower(model))"),
    ] {
        server.query(&made);
        let mut reporter = open_table("postgres", &server.dsn(), "rows_").unwrap();
        let records = records(3);
        for _ in 0..2 {
            assert_eq!(send(&mut reporter, &records), Tried::Delivered, "{made}");
        }
        assert_eq!(server.text("SELECT count(*) FROM rows_"), "3", "{made}");
        server.query("DROP TABLE rows_");
    }
}

fn refuses_narrow_ids<S: Server>(tables: &[&str]) {
    if !is_there(S::DRIVER, S::is_there()) {
        return;
    }
    let server = S::start();
    for table in tables {
        server.query(table);
        let mut reporter = open_table(S::DRIVER, &server.dsn(), "rows_").unwrap();
        match send(&mut reporter, &records(10)) {
            Tried::Again(said) => {
                assert!(said.contains("rows_") && said.contains("request_id"), "{said}")
            }
            other => panic!("{other:?} for {table}"),
        }
        assert_eq!(server.text("SELECT count(*) FROM rows_"), "0");
        server.query("DROP TABLE rows_");
    }
    server.query("CREATE TABLE rows_ (request_id CHAR(32) UNIQUE, total_tokens INT)");
    let mut reporter = open_table(S::DRIVER, &server.dsn(), "rows_").unwrap();
    assert_eq!(send(&mut reporter, &records(10)), Tried::Delivered);
    assert_eq!(server.text("SELECT count(*) FROM rows_"), "10");
}

#[test]
fn mariadb_says_why_it_cannot_be_used() {
    says_why_it_cannot_be_used::<MariaDb>();
}

#[test]
fn postgres_says_why_it_cannot_be_used() {
    says_why_it_cannot_be_used::<Postgres>();
}

/// Catches: a cause that nobody understands, or one with the password in it; records that are
/// given up because somebody changed a password.
fn says_why_it_cannot_be_used<S: Server>() {
    if !is_there(S::DRIVER, S::is_there()) {
        return;
    }
    let mut server = S::start();
    let ask = |dsn: &str| {
        let mut reporter = open(S::DRIVER, dsn).unwrap();
        assert!(!reporter.place().contains(PASSWORD) && reporter.place().contains("127.0.0.1"));
        match send(&mut reporter, &records(1)) {
            Tried::Again(cause) => cause,
            other => panic!("{other:?}"),
        }
    };
    let wrong = ask(&server.dsn_with("wr0ngpassword", "metering"));
    assert!(wrong.contains("llmproxy") && !wrong.contains("wr0ng"), "{wrong}");
    let gone = ask(&server.dsn_with(PASSWORD, "no_such"));
    assert!(gone.contains("no_such") && !gone.contains(PASSWORD), "{gone}");
    let plain = ask(&match S::DRIVER {
        "mysql" => format!("{}?tls=true", server.dsn()),
        _ => format!("{}?sslmode=require", server.dsn()),
    });
    assert!(plain.to_ascii_lowercase().contains("tls"), "{plain}");
    let elsewhere = server.dsn().replace("127.0.0.1", "no-such-host.invalid");
    let started = Instant::now();
    let mut lost = open(S::DRIVER, &elsewhere).unwrap();
    assert!(matches!(send(&mut lost, &records(1)), Tried::Again(_)));
    assert!(started.elapsed() < LIMIT * 2, "the look-up of a name is bounded");
    server.stop();
    let down = ask(&server.dsn());
    assert!(down.to_lowercase().contains("refused"), "{down}");
}

/// Catches: TLS that is asked for and not used, or checked less than asked for.
#[test]
fn postgres_is_reached_through_tls_as_asked() {
    if !is_there("postgres", Postgres::is_there()) {
        return;
    }
    let server = Postgres::start();
    let scratch = Scratch::new();
    let made = rcgen::generate_simple_self_signed(vec!["db.example".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let roots = scratch.write("roots.pem", made.cert.pem());
    let others = scratch.write("others.pem", other.cert.pem());
    for (name, text) in
        [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())]
    {
        let path = server.data().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        server.own(&path);
    }
    server.query("ALTER SYSTEM SET ssl = on");
    server.query("SELECT pg_reload_conf()");
    let encrypted = || {
        server.text(
            "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
             WHERE s.ssl AND a.application_name = 'ours'",
        )
    };
    let open = |options: String| {
        let dsn = format!("{}?application_name=ours&{options}", server.dsn());
        open("postgres", &dsn).unwrap()
    };
    await_until("the server has TLS", SOON, || {
        let mut reporter = open("sslmode=require".to_owned());
        send(&mut reporter, &records(1)) == Tried::Delivered && encrypted() == "1"
    });
    let (roots, others) = (roots.display(), others.display());
    for (options, fine) in [
        ("sslmode=prefer".to_owned(), true),
        (format!("sslmode=verify-ca&sslrootcert={roots}"), true),
        (format!("sslmode=verify-ca&sslrootcert={others}"), false),
        (format!("sslmode=require&sslrootcert={others}"), false),
        (format!("sslmode=verify-full&sslrootcert={roots}"), false),
        ("sslmode=verify-full".to_owned(), false),
    ] {
        let mut reporter = open(options.clone());
        let tried = send(&mut reporter, &records(1));
        assert_eq!(tried == Tried::Delivered, fine, "{options}: {tried:?}");
        await_until(&options, SOON, || encrypted() == if fine { "1" } else { "0" });
    }
    let mut plain = open("sslmode=disable".to_owned());
    assert_eq!(send(&mut plain, &records(1)), Tried::Delivered);
    await_until("a plain connection", SOON, || encrypted() == "0");
}

/// Catches: TLS that is asked for and not used, a certificate that is not checked, or not against
/// the roots of the system.
#[test]
fn mariadb_is_reached_through_tls_as_asked() {
    if !is_there("mysql", MariaDb::is_there()) {
        return;
    }
    let scratch = Scratch::new();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let roots = scratch.write("cert.pem", made.cert.pem());
    let key = scratch.write("key.pem", made.signing_key.serialize_pem());
    let (cert, key) =
        (format!("--ssl-cert={}", roots.display()), format!("--ssl-key={}", key.display()));
    let server = MariaDb::start_with(&[&cert, &key]);
    server.query("CREATE USER careful@'%' IDENTIFIED BY 'careful' REQUIRE SSL");
    server.query("GRANT ALL ON *.* TO careful@'%'");
    let dsn = format!("careful:careful@tcp({})/metering", server.addr());
    for (options, fine) in [("", false), ("?tls=skip-verify", true), ("?tls=true", false)] {
        let tried = send(&mut open("mysql", &format!("{dsn}{options}")).unwrap(), &records(1));
        assert_eq!(tried == Tried::Delivered, fine, "{options}: {tried:?}");
    }
    let engine = Engine::start(&[]);
    let yaml = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{reporters: [{{type: database, database: {{driver: mysql, \
             dsn: '{dsn}?tls=true'}}}}]}}"
        ))
        .yaml();
    let trust = format!("SSL_CERT_FILE={}", roots.display());
    let proxy = Proxy::start_through(&["env", &trust], &yaml);
    assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    await_until("a row", SOON, || server.text("SELECT count(*) FROM usage_records") == "2");
}

/// Catches: an address with a Unix socket that is not found.
#[test]
fn servers_are_reached_through_their_sockets() {
    if !is_there("servers", MariaDb::is_there() && Postgres::is_there()) {
        return;
    }
    let maria = MariaDb::start();
    let dsn = format!("llmproxy:{PASSWORD}@unix({})/metering", maria.socket().display());
    assert_eq!(send(&mut open("mysql", &dsn).unwrap(), &records(1)), Tried::Delivered);
    let postgres = Postgres::start();
    let dsn = format!(
        "host={} port={} user=llmproxy password={PASSWORD} dbname=metering",
        postgres.socket_folder().display(),
        postgres.addr().port()
    );
    assert_eq!(send(&mut open("postgres", &dsn).unwrap(), &records(1)), Tried::Delivered);
    let (folder, port) = (postgres.socket_folder().display(), postgres.addr().port());
    for dsn in [
        format!("postgres://llmproxy:{PASSWORD}@/metering?host={folder}&port={port}"),
        format!(
            "user = llmproxy password = '{PASSWORD}' dbname = metering host={folder} port={port}"
        ),
        // The first of them is not there.
        format!("postgres://llmproxy:{PASSWORD}@127.0.0.1:1,localhost:{port}/metering"),
        format!(
            "host=no-such.invalid,127.0.0.1 port={port} user=llmproxy password={PASSWORD} \
                 dbname=metering target_session_attrs=read-write"
        ),
    ] {
        let sent = send(&mut open("postgres", &dsn).unwrap(), &records(1));
        assert_eq!(sent, Tried::Delivered, "{dsn}");
    }
}
