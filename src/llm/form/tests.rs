use super::*;
use proptest::prelude::*;

const TYPE: &[u8] = b"multipart/form-data; boundary=b-1";

fn scan(body: &[u8]) -> Result<FormModel<'_>, FormFault> {
    FormScan::new(TYPE, b"b-1", body).step(usize::MAX).unwrap()
}

/// A form of these parts, each a head and what it holds.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in parts {
        body.extend_from_slice(format!("--b-1\r\n{head}\r\n\r\n").as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b-1--\r\n");
    body
}

const MODEL: &str = "Content-Disposition: form-data; name=\"model\"";
const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a \u{e9}.wav\"; \
                    filename*=UTF-8''a%20b.wav\r\nContent-Type: audio/wav";

/// Catches: a model that is not found where it stands, or a form of a real client that is refused.
#[test]
fn the_model_is_found_wherever_its_part_stands() {
    let noise = b"\r\n--b\r\n\r\nRIFF\0\xff--\r\n";
    for head in [
        MODEL,
        "content-disposition: form-data; name=model",
        "Content-Type: text/plain; charset=utf-8\r\nCONTENT-DISPOSITION:form-data;name=\"model\"",
        "Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: 8bit",
    ] {
        for parts in [
            &[(head, &b"whisper/1 \xc3\xa9"[..]), (FILE, noise)][..],
            &[(FILE, noise), (head, b"whisper/1 \xc3\xa9")],
            &[(FILE, b""), (head, b"whisper/1 \xc3\xa9"), (FILE, b"")],
        ] {
            let body = form(parts);
            let (name, place) = scan(&body).unwrap().unwrap();
            assert_eq!(name, "whisper/1 \u{e9}", "{head}");
            assert_eq!(&body[place], name.as_bytes());
        }
    }
    assert_eq!(scan(&form(&[(FILE, noise)])), Ok(None));
    assert_eq!(scan(&form(&[(MODEL, b"")])).unwrap().unwrap().0, "");
    let other = "Content-Disposition: form-data; name=\"Model\"";
    assert_eq!(scan(&form(&[(other, b"x")])), Ok(None), "engines tell case apart");
    assert_eq!(scan(b"--b-1--"), Ok(None));
}

/// Catches: a form that two parsers read in two ways.
#[test]
fn what_two_parsers_could_read_in_two_ways_is_refused() {
    let refused = |body: &[u8]| match scan(body) {
        Err(FormFault::Doubtful(_)) => {}
        other => panic!("{other:?}: {}", String::from_utf8_lossy(body)),
    };
    for head in [
        "Content-Disposition: form-data; name=\"model\"; name=\"x\"",
        "Content-Disposition: form-data; name=\"x\"; NAME=\"model\"",
        "Content-Disposition: form-data; name=\"x\"; name*=UTF-8''model",
        "Content-Disposition: form-data; name*0=\"mod\"; name*1=\"el\"",
        "Content-Disposition: form-data; name=\"model\"; filename=\"a\"",
        "Content-Disposition: form-data; filename=\"a\\\"; name=\"model\"",
        "Content-Disposition: form-data; name=\"x\";",
        "Content-Disposition: form-data; name=\"x",
        "Content-Disposition: form-data; name=\"x\" y",
        "Content-Disposition: form-data",
        "Content-Disposition: attachment; name=\"model\"",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"model\"",
        "Content-Disposition: form-data;\r\n name=\"model\"",
        "Content-Disposition: form-data; name=\"x\"\nContent-Disposition: form-data; name=\"model\"",
        "Content-Disposition : form-data; name=\"x\"",
        "Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64",
        "Content-Disposition: form-data; name=\"_charset_\"",
        "Content-Type: text/plain",
        "X: --b-1\r\nContent-Disposition: form-data; name=\"x\"",
    ] {
        refused(&form(&[(head, b"a")]));
    }
    for body in [
        &b"--b-1"[..],
        b"--b-1\n",
        b"--b-1 \r\n",
        b"--b-1--x",
        b"--b-1--\r\n\r\n",
        b"--b-1\r\n",
        b"--b-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na",
        b"--b-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n--b-1--",
        b"--b-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\n--b-1--",
        b"--b-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n--b-1x\r\n--b-1--",
        b"--b-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n--b-1--\r\n--b-1--",
    ] {
        refused(body);
    }
    for name in [&b"a\r\nb"[..], b"a\0", b"\xff"] {
        refused(&form(&[(MODEL, name)]));
    }
    let long_head = format!("X: {}\r\n{MODEL}", "x".repeat(FORM_HEAD_BYTES_MAX));
    refused(&form(&[(&long_head, b"a")]));
    let twice = form(&[(MODEL, b""), (FILE, b"x"), (MODEL, b"b")]);
    assert_eq!(scan(&twice), Err(FormFault::Model(ScanFault::Duplicate("model"))));
    let long = vec![b'm'; MODEL_NAME_BYTES_MAX + 1];
    assert_eq!(scan(&form(&[(MODEL, &long)])), Err(FormFault::Model(ScanFault::ModelTooLong)));
    for (content_type, is_fine) in [
        ("multipart/form-data; boundary=b-1", true),
        ("Multipart/Form-Data;Boundary=\"b-1\" ; charset=UTF-8", true),
        ("multipart/form-data; boundary=b-1; charset=utf-16", false),
        ("multipart/form-data; boundary=b-1; boundary=c", false),
        ("multipart/form-data; boundary=b-1; boundary*=c", false),
    ] {
        let body = form(&[(MODEL, b"a")]);
        let found = FormScan::new(content_type.as_bytes(), b"b-1", &body).step(usize::MAX);
        assert_eq!(found.unwrap().is_ok(), is_fine, "{content_type}");
    }
}

/// What a parser finds that splits the body at each line with the boundary and forgives the rest:
/// the values of all parts that it takes for the model.
fn by_lines(body: &[u8], line_end: &[u8]) -> Vec<Vec<u8>> {
    let mark = [line_end, b"--b-1"].concat();
    let whole = [line_end, body].concat();
    let places: Vec<usize> = memmem::find_iter(&whole, &mark).collect();
    let parts = places.windows(2).map(|pair| &whole[pair[0] + mark.len()..pair[1]]);
    let value = |part: &[u8]| {
        let (at, len) = [&b"\r\n\r\n"[..], b"\n\n"]
            .iter()
            .filter_map(|blank| Some((memmem::find(part, blank)?, blank.len())))
            .min()?;
        let head = String::from_utf8_lossy(&part[..at]).to_ascii_lowercase();
        let named = ["name=\"model\"", "name=model"].iter().any(|name| head.contains(name));
        let named = named && !head.contains("filename");
        named.then(|| part[at + len..].to_vec())
    };
    parts.map_while(|part| (!part.starts_with(b"--")).then_some(part)).filter_map(value).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Catches: a model that another parser would not read, or would read otherwise, in a form of
    /// any parts, bent in any place; and one that depends on where a slice ended.
    #[test]
    fn what_is_read_is_what_others_read(
        parts in prop::collection::vec((0..4usize, "[a-z\r\n-]{0,8}"), 0..5),
        bends in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(vec![
                "\r\n", "\n", "\r", "--b-1", "\r\n--b-1", "-", "\"", "\\", " ", "; name=\"model\"", "",
            ]), any::<bool>()),
            0..3,
        ),
        slice in 1..64usize,
    ) {
        let heads = [MODEL, FILE, "Content-Disposition: form-data; name=\"x\"", MODEL];
        let parts: Vec<(&str, &[u8])> =
            parts.iter().map(|(head, content)| (heads[*head], content.as_bytes())).collect();
        let mut body = form(&parts);
        for (place, text, is_put) in bends {
            let at = place.index(body.len() - 5) + 5;
            let end = if is_put { at } else { (at + text.len()).min(body.len()) };
            body.splice(at..end, text.bytes());
        }
        let found = scan(&body);
        let mut steps = FormScan::new(TYPE, b"b-1", &body);
        let sliced = std::iter::repeat_with(|| steps.step(slice)).take(10_000).flatten().next();
        prop_assert_eq!(sliced.as_ref(), Some(&found));
        if let Ok(found) = found {
            let name = found.map(|(name, _)| name.as_bytes().to_vec());
            let model: Vec<_> = name.into_iter().collect();
            let shown = String::from_utf8_lossy(&body);
            prop_assert_eq!(&by_lines(&body, b"\r\n"), &model, "{}", shown);
            // One that does not ask for the CR finds the same places, and the CR before them.
            let loose: Vec<_> = by_lines(&body, b"\n").into_iter().map(|mut value| {
                value.pop_if(|last| *last == b'\r');
                value
            }).collect();
            prop_assert_eq!(&loose, &model, "{}", shown);
        }
    }
}
