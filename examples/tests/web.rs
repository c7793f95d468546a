//! Tests of the web server over plain HTTP.

#[path = "web/client.rs"]
mod client;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use hart_core::{Hart, OpenOptions, Request};
use serde_json::{Value, json};

use client::{Server, WEB, post};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji");

/// Number of diffusion steps that makes the small model slow on any machine.
const SLOW: &str = "100";

/// Returns the PNG files that the library generates from a prompt and a seed.
fn library(prompt: &str, seed: u64, count: usize) -> Vec<Vec<u8>> {
    let hart = Hart::open(SHIPPED, OpenOptions::new()).unwrap();
    let generation = hart.generate(&Request::new(prompt).seed(seed).images_per_prompt(count)).unwrap();
    generation.images.iter().map(|i| i.to_png().unwrap()).collect()
}

/// Returns the number of events with a name.
fn count(events: &[(String, Value)], name: &str) -> usize {
    events.iter().filter(|e| e.0 == name).count()
}

#[test]
fn the_page_and_its_files() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert_eq!(page.status, 200);
    let text = String::from_utf8(page.body).unwrap();
    assert!(page.head.contains("text/html") && text.contains("<title>hart</title>"));
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "x-frame-options: deny"] {
        assert!(page.head.contains(header), "{header} in {}", page.head);
    }
    assert!(!page.head.contains("access-control") && !page.head.contains("unsafe-inline"));
    let mut files = text.clone();
    for file in ["/page.js", "/api.js", "/view.js", "/history.js", "/style.css", "/icon.svg"] {
        let response = server.get(file);
        assert_eq!(response.status, 200, "{file}");
        files.push_str(&String::from_utf8(response.body).unwrap());
    }
    // Nothing is loaded from other hosts.
    assert!(!files.replace("http://www.w3.org/2000/svg", "").contains("http"));
    let model = server.get("/api/model").json();
    assert_eq!((&model["name"], &model["width"], &model["defaults"]["top_p"]), (&json!("hart-emoji"), &json!(64), &json!(0.4)));
}

#[test]
fn events_link_to_the_librarys_images() {
    let server = Server::start(&["--threads", "2"]);
    let id = server.submit(json!({"prompt": "A parrot 🦜", "seed": "18446744073709551615", "count": 2}));
    let events = server.events(&id);
    assert_eq!(events[0], ("queued".into(), json!({"position": 0})));
    assert_eq!(events.last().unwrap().0, "done");
    assert!(events.last().unwrap().1["milliseconds"]["total"].as_f64().unwrap() > 0.0);
    assert_eq!((count(&events, "preview"), count(&events, "image")), (12, 2));
    let fractions: Vec<f64> = events.iter().filter(|e| e.0 == "progress").map(|e| e.1["fraction"].as_f64().unwrap()).collect();
    assert!(fractions.len() >= 10 && fractions.is_sorted() && fractions.iter().all(|f| (0.0..=1.0).contains(f)));
    for (_, preview) in events.iter().filter(|e| e.0 == "preview") {
        let png = base64::engine::general_purpose::STANDARD.decode(preview["png"].as_str().unwrap()).unwrap();
        assert_eq!(hart_core::Image::from_png("preview", &png).unwrap().width(), 64);
        assert_eq!(preview["scales"], 6);
    }
    let images: Vec<&Value> = events.iter().filter(|e| e.0 == "image").map(|e| &e.1).collect();
    assert_eq!((&images[0]["seed"], &images[1]["seed"]), (&json!("18446744073709551615"), &json!("0")));
    let urls = images.iter().map(|i| i["url"].as_str().unwrap());
    for (url, expected) in urls.zip(library("A parrot 🦜", u64::MAX, 2)) {
        let response = server.get(url);
        assert!(response.head.contains("content-type: image/png") && !response.head.contains("content-disposition"));
        assert!(response.body == expected, "{url} differs from the library's image");
        let response = server.get(&format!("{url}?download"));
        assert!(response.head.contains("filename=\"a-parrot-"), "{}", response.head);
    }
    // A client that reconnects receives only the rest. Cancelling a request that has ended has no effect.
    let rest: Vec<_> = server.listen(&id, &format!("Last-Event-ID: {}\r\n", events.len() - 2)).collect();
    assert_eq!(rest, events[events.len() - 1..]);
    assert_eq!(server.post(&format!("/api/generate/{id}/cancel"), "").json(), json!({"cancelled": false}));
}

#[test]
fn a_repeated_prompt_is_encoded_once() {
    let server = Server::start(&[]);
    // Returns the first stage, the milliseconds of the text stage, and the image.
    let run = |settings: Value| {
        let events = server.events(&server.submit(settings));
        let find = |name: &str| events.iter().find(|e| e.0 == name).unwrap_or_else(|| panic!("{events:?}")).1.clone();
        let image = server.get(find("image")["url"].as_str().unwrap()).body;
        (find("progress")["stage"].clone(), find("done")["milliseconds"]["text"].as_f64().unwrap(), image)
    };
    let settings = json!({"prompt": "a guitar", "seed": 3});
    let (stage, first, image) = run(settings.clone());
    assert!(stage == "text" && first > 0.0 && image == library("a guitar", 3, 1)[0]);
    let (stage, repeated, again) = run(settings);
    assert!(stage == "transformer" && repeated < first, "{stage}, {repeated} ms after {first} ms");
    assert!(again == image);
    // Pruned scales are the library's.
    let hart = Hart::open(SHIPPED, OpenOptions::new().device(hart_core::DeviceKind::Cpu)).unwrap();
    let request = Request::new("a guitar").seed(3).prune(hart_core::Pruning::default());
    let pruned = run(json!({"prompt": "a guitar", "seed": 3, "prune": "0.5,0.75"})).2;
    assert!(pruned == hart.generate(&request).unwrap().images[0].to_png().unwrap() && pruned != image);
    // Other settings use the same context; another prompt or system prompt has its own.
    assert_eq!(run(json!({"prompt": "a guitar", "guidance": 3, "count": 2})).0, "transformer");
    assert_eq!(run(json!({"prompt": "a house"})).0, "text");
    assert_eq!(run(json!({"prompt": "a guitar", "system_prompt": "Draw: "})).0, "text");
    assert_eq!(run(json!({"prompt": "a guitar"})).0, "transformer");
}

#[test]
fn a_truncated_prompt_is_reported() {
    let server = Server::start(&[]);
    let id = server.submit(json!({"prompt": format!("{} finally", "a parrot and ".repeat(20))}));
    let (name, done) = server.events(&id).pop().unwrap();
    assert!(name == "done" && done["notes"][0].as_str().unwrap().contains("finally"), "{done}");
}

#[test]
fn options_select_the_precision_and_the_prompt_filter() {
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), "gun\n").unwrap();
    let server = Server::start(&["--precision", "int8", "--device", "cpu", "--filter", list.path().to_str().unwrap()]);
    for path in ["/api/generate", "/v1/images/generations"] {
        let refused = server.post(path, "{\"prompt\": \"a GUN\"}");
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"], &error["param"]), (400, &json!("content_policy_violation"), &json!("prompt")));
        assert!(refused.message().contains("\"gun\" is on the list"), "{error}");
    }
    let id = server.submit(json!({"prompt": "a parrot", "seed": 3}));
    let events = server.events(&id);
    let url = events.iter().find(|event| event.0 == "image").unwrap().1["url"].as_str().unwrap().to_string();
    let hart = Hart::open(SHIPPED, OpenOptions::new().precision(hart_core::Precision::Int8)).unwrap();
    let expected = hart.generate(&Request::new("a parrot").seed(3)).unwrap().images[0].to_png().unwrap();
    assert!(server.get(&url).body == expected);
}

#[test]
fn the_queue_is_bounded_and_cancelling_frees_it() {
    let server = Server::start(&["--queue", "1", "--max-images", "200", "--parallel", "1"]);
    let many = json!({"prompt": "a parrot", "count": 200, "steps": SLOW});
    let running = server.submit(many.clone());
    let waiting = server.submit(many.clone());
    let refused = server.post("/api/generate", &many.to_string());
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    let refused = server.post("/v1/images/generations", "{\"prompt\": \"a parrot\"}");
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    let mut events = server.listen(&waiting, "");
    assert_eq!(events.next().unwrap(), ("queued".into(), json!({"position": 1})));
    assert_eq!(server.post(&format!("/api/generate/{waiting}/cancel"), "").json(), json!({"cancelled": true}));
    assert_eq!(events.last().unwrap(), ("cancelled".into(), json!({"finished": 0})));
    let mut events = server.listen(&running, "");
    events.find(|e| e.0 == "image").unwrap();
    server.post(&format!("/api/generate/{running}/cancel"), "");
    let (name, data) = events.last().unwrap();
    assert!(name == "cancelled" && data["finished"].as_u64().unwrap() < 200, "{name} {data}");
    assert_eq!(server.get(&format!("/api/images/{running}/0.png")).status, 200, "finished images stay available");
    server.assert_free(Duration::from_secs(10));
}

#[test]
fn several_requests_run_at_once() {
    let mut server = Server::start(&["--queue", "1", "--max-images", "200", "--threads", "2", "--parallel", "2", "--grace", "0"]);
    let many = json!({"prompt": "a parrot", "seed": 5, "count": 200, "steps": SLOW});
    let running = [0, 1].map(|_| server.submit(many.clone()));
    let waiting = server.submit(many.clone());
    assert_eq!(server.post("/api/generate", &many.to_string()).status, 429);
    // Both draw images before either is done, and the third has to wait for one of them.
    let mut events = running.each_ref().map(|id| server.listen(id, ""));
    for events in &mut events {
        events.find(|e| e.0 == "image").unwrap();
    }
    assert_eq!(server.listen(&waiting, "").next().unwrap(), ("queued".into(), json!({"position": 1})));
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("\nhart_running 2\n") && metrics.contains("\nhart_queue_length 1\n"), "{metrics}");
    // Cancelling one of them lets the third begin.
    server.post(&format!("/api/generate/{}/cancel", running[0]), "");
    assert_eq!(events[0].by_ref().last().unwrap().0, "cancelled");
    server.listen(&waiting, "").find(|e| e.0 == "image").unwrap();
    events[1].find(|e| e.0 == "image").unwrap();
    // The images are those of requests that run alone.
    let image = server.get(&format!("/api/images/{}/0.png", running[1])).body;
    assert!(image == server.get(&format!("/api/images/{waiting}/0.png")).body);
    // Ctrl-C ends all of them.
    #[cfg(unix)]
    {
        assert!(Command::new("kill").args(["-s", "TERM", &server.child.id().to_string()]).status().unwrap().success());
        assert_eq!(events[1].by_ref().last().unwrap().0, "cancelled");
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn errors_are_json() {
    let server = Server::start(&[]);
    let wrong = |body: &str, status: u16, words: &str| {
        for path in ["/api/generate", "/v1/images/generations"] {
            let response = server.post(path, body);
            assert!(response.status == status && response.message().contains(words), "{path} {body:.50}: {}", response.json());
            assert_eq!(response.json()["error"]["type"], "invalid_request_error");
        }
    };
    for body in ["", "{", "[]", "null", "\"x\"", "{}", "{\"prompt\": 3}", "{\"prompt\": \"\\ud800\"}"] {
        wrong(body, 400, "the body is invalid");
    }
    wrong(&"[".repeat(60_000), 400, "the body is invalid");
    wrong(&format!("{{\"prompt\": \"{}\"}}", "x".repeat(70_000)), 413, "65536 bytes");
    wrong("{\"prompt\": \" \"}", 400, "empty: describe an image");
    wrong("{\"prompt\": \"x\", \"guidance\": 101}", 400, "-100 to 100");
    wrong("{\"prompt\": \"x\", \"guidance\": 1e999}", 400, "the body is invalid");
    wrong("{\"prompt\": \"x\", \"seed\": \"one\"}", 400, "whole number");
    for seed in ["-2", "1.5", "18446744073709551616", "true"] {
        let body = format!("{{\"prompt\": \"x\", \"seed\": {seed}}}");
        wrong(&body, 400, "seed: expected a whole number from 0 to 18446744073709551615");
    }
    for (setting, words) in [
        ("\"count\": 17", "at most 16"),
        ("\"count\": 0", "at least one"),
        ("\"top_k\": 0", "top_k: "),
        ("\"top_p\": 2", "top_p: "),
        ("\"steps\": \"0\"", "expected 1 to 1000 steps"),
        ("\"prune\": \"1\"", "prune: ratio 1 is 1"),
        ("\"prune\": \"0.1,0.2,0.3,0.4,0.5\"", "prune: has 5 ratios, expected at most 4"),
        ("\"omit_marks\": \"promt\"", "omit_marks: `promt` is unknown"),
    ] {
        let refused = server.post("/api/generate", &format!("{{\"prompt\": \"x\", {setting}}}"));
        assert!(refused.message().contains(words), "{setting}");
        // The field is named as in the request.
        let field = refused.json()["error"]["param"].as_str().unwrap().to_string();
        assert!(refused.status == 400 && setting.starts_with(&format!("\"{field}\"")), "{setting}: {field}");
    }
    assert!(server.post("/api/generate", "{\"prompt\": \"x\", \"promt\": 1}").message().contains("promt"));
    let text = post("/api/generate", "{\"prompt\": \"x\"}").replace("application/json", "text/plain");
    assert_eq!(server.raw(text.as_bytes()).status, 415);
    for path in ["/x", "/api/generate/0/events", "/api/images/0/0.png", "/api/images/0/../../x", "/v1/models/x"] {
        let response = server.get(path);
        assert_eq!(response.status, 404, "{path}: {}", response.message());
    }
    assert_eq!(server.post("/api/generate/0/cancel", "").status, 404);
    assert_eq!((server.get("/api/generate").status, server.post("/", "").status), (405, 405));
    assert!(server.get("/api/images/%ff/0.png").status >= 400);
    let id = server.submit(json!({"prompt": "x"}));
    assert_eq!(server.events(&id).last().unwrap().0, "done");
    for file in ["1.png", "0", "0.jpg", "-1.png", "99999999999999999999999.png", ".png"] {
        assert_eq!(server.get(&format!("/api/images/{id}/{file}")).json()["error"]["code"], "not_found", "{file}");
    }
}

#[test]
fn only_requests_for_localhost_are_served() {
    let server = Server::start(&[]);
    let status = |host: &str| server.raw(format!("GET /api/model HTTP/1.0\r\n{host}\r\n").as_bytes()).status;
    for host in ["Host: localhost:1\r\n", "Host: 127.0.0.1\r\n", "Host: [::1]:7860\r\n"] {
        assert_eq!(status(host), 200, "{host}");
    }
    for host in ["", "Host: example.com\r\n", "Host: localhost.example.com\r\n", "Host: localhost\r\nHost: example.com\r\n"] {
        assert_eq!(status(host), 403, "{host}");
    }
}

#[test]
fn the_openai_api() {
    let server = Server::start(&["--max-images", "200"]);
    let body = json!({"model": "dall-e-3", "prompt": "a parrot", "n": 2, "size": "64x64", "seed": 5, "quality": "hd", "user": "x"});
    let response = server.post("/v1/images/generations", &body.to_string()).json();
    assert!(response["created"].as_u64().unwrap() > 1_600_000_000);
    let expected = library("a parrot", 5, 2);
    assert_eq!(response["data"].as_array().unwrap().len(), expected.len());
    for (data, expected) in response["data"].as_array().unwrap().iter().zip(expected) {
        let png = base64::engine::general_purpose::STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap();
        assert!(png == expected);
    }
    let wrong = |key: &str, value: Value| {
        let mut body = json!({"prompt": "a parrot"});
        body[key] = value;
        let response = server.post("/v1/images/generations", &body.to_string());
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!(key)), "{}", response.json());
        assert!(response.message().contains(key), "{}", response.message());
    };
    for size in ["large", "64", "0x64", "4097x1", "4096x4096", "64x64x64"] {
        wrong("size", json!(size));
    }
    for n in [json!(0), json!(201), json!(1.5), json!("many")] {
        wrong("n", n);
    }
    wrong("response_format", json!("file"));
    wrong("output_format", json!("gif"));
    wrong("output_compression", json!(101));
    wrong("background", json!("transparent"));
    wrong("partial_images", json!(4));
    wrong("stream", json!("maybe"));
    wrong("prune", json!("0.1,0.2,0.3,0.4,0.5"));
    wrong("omit_marks", json!("promt"));
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "hart-emoji");
    assert_eq!(server.get("/v1/models/hart-emoji").json()["id"], "hart-emoji");
    // A client that disconnects cancels its run: two hundred images would take half a minute.
    let client = server.connect(post("/v1/images/generations", "{\"prompt\": \"a parrot\", \"n\": 200}").as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    drop(client);
    server.assert_free(Duration::from_secs(10));
}

#[test]
fn strict_size_refuses_other_sizes() {
    let server = Server::start(&["--strict-size"]);
    let post = |size: &str| server.post("/v1/images/generations", &json!({"prompt": "a parrot", "size": size}).to_string());
    assert_eq!((post("64x64").status, post("auto").status), (200, 200));
    let refused = post("512x512");
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("size")));
}

#[test]
fn the_key_protects_all_but_health_and_images() {
    let server = Server::start(&["--api-key", "s3cret"]);
    for path in ["/", "/v1/models", "/sdapi/v1/options", "/metrics", "/nowhere"] {
        let refused = server.get(path);
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("invalid_api_key")), "{path}");
        assert!(refused.head.contains("www-authenticate: basic"));
    }
    assert_eq!(server.get("/health").status, 200);
    // The second is user:s3cret.
    for value in ["Bearer s3cret", "Basic dXNlcjpzM2NyZXQ="] {
        let text = format!("GET /v1/models HTTP/1.0\r\nHost: localhost\r\nAuthorization: {value}\r\n\r\n");
        assert_eq!(server.raw(text.as_bytes()).status, 200, "{value}");
    }
    let body =
        json!({"prompt": "a parrot", "response_format": "url", "output_format": "jpeg", "output_compression": 80}).to_string();
    let text = post("/v1/images/generations", &body).replacen("\r\n", "\r\nAuthorization: Bearer s3cret\r\n", 1);
    let url = server.raw(text.as_bytes()).json()["data"][0]["url"].as_str().unwrap().to_string();
    let image = server.get(url.strip_prefix("http://localhost").unwrap());
    assert!(image.status == 200 && image.head.contains("content-type: image/jpeg") && image.body.starts_with(&[0xff, 0xd8]));
}

#[test]
fn other_origins_are_admitted_by_option() {
    let server = Server::start(&["--allow-origin", "https://a.example"]);
    let ask = |method: &str, origin: &str| {
        let headers = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type, authorization";
        let path = "/v1/images/generations";
        let text =
            format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nOrigin: {origin}\r\n{headers}\r\nContent-Length: 0\r\n\r\n");
        server.raw(text.as_bytes())
    };
    let allowed = ask("OPTIONS", "https://a.example");
    assert_eq!(allowed.status, 204);
    for header in ["access-control-allow-origin: https://a.example", "access-control-allow-methods: post", "vary: origin"] {
        assert!(allowed.head.contains(header), "{header} in {}", allowed.head);
    }
    let refused = ask("OPTIONS", "https://b.example");
    assert!(refused.status == 405 && !refused.head.contains("access-control"), "{}", refused.head);
    assert_eq!(ask("POST", "https://b.example").json()["error"]["code"], "wrong_origin");
    assert_eq!(ask("POST", "https://a.example").status, 415);
}

#[cfg(unix)]
#[test]
fn a_stream_ends_with_an_error_when_the_run_does() {
    let mut server = Server::start(&["--max-images", "200", "--grace", "0"]);
    let body = json!({"prompt": "a parrot", "n": 200, "stream": true, "partial_images": 1}).to_string();
    // A client that disconnects cancels its run.
    let mut line = String::new();
    let mut client = BufReader::new(server.connect(post("/v1/images/generations", &body).as_bytes()));
    while !line.starts_with("event: image_generation.completed") {
        line.clear();
        assert!(client.read_line(&mut line).unwrap() > 0);
    }
    drop(client);
    server.assert_free(Duration::from_secs(10));
    let mut client = server.connect(post("/v1/images/generations", &body).as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-s", "TERM", &server.child.id().to_string()]).status().unwrap().success());
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    let (_, last) = response.trim_end().rsplit_once("event: error\ndata: ").unwrap();
    let error: Value = serde_json::from_str(last.lines().next().unwrap()).unwrap();
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("server_error"), &json!("cancelled")), "{error}");
    assert!(server.child.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_graceful_stop_finishes_what_was_accepted() {
    let mut server = Server::start(&["--max-images", "200", "--grace", "60"]);
    let many = json!({"prompt": "a parrot", "n": 6, "size": "128x96"}).to_string();
    let clients: Vec<_> = (0..2).map(|_| server.connect(post("/v1/images/generations", &many).as_bytes())).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(Command::new("kill").args(["-s", "TERM", &server.child.id().to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(100));
    let refused = server.post("/v1/images/generations", "{\"prompt\": \"a parrot\"}");
    assert_eq!((refused.status, server.get("/health").status), (503, 503), "{}", refused.message());
    for mut client in clients {
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.0 200") && response.matches("b64_json").count() == 6, "{response:.300}");
    }
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_run_without_listeners_is_cancelled() {
    let server = Server::start(&["--max-images", "200"]);
    let id = server.submit(json!({"prompt": "a parrot", "count": 200, "steps": SLOW}));
    let mut events = server.listen(&id, "");
    events.find(|e| e.0 == "preview").unwrap();
    drop(events);
    std::thread::sleep(Duration::from_millis(500));
    // Reconnecting in time keeps the run going.
    let mut events = server.listen(&id, "");
    events.find(|e| e.0 == "image").unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert!(events.any(|e| e.0 == "image"));
    drop(events);
    std::thread::sleep(Duration::from_secs(6));
    let (name, data) = server.events(&id).pop().unwrap();
    assert!(name == "cancelled" && data["finished"].as_u64().unwrap() > 1, "{name} {data}");
}

#[test]
fn slow_clients_are_disconnected() {
    let server = Server::start(&["--max-images", "200"]);
    let running = server.submit(json!({"prompt": "a parrot", "count": 200, "steps": SLOW}));
    let events = server.listen(&running, "");
    let start = Instant::now();
    // No request, half a header, and no second request.
    let texts: [&[u8]; 3] = [b"", b"GET / HT", b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"];
    let responses = texts.map(|text| server.connect(text)).map(|mut client| {
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        response
    });
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(responses[0].is_empty() && responses[1].is_empty() && responses[2].starts_with("HTTP/1.1 200"), "{responses:?}");
    // An event stream may stay open for longer.
    server.post(&format!("/api/generate/{running}/cancel"), "");
    assert_eq!(events.last().unwrap().0, "cancelled");
}

// Other systems limit the number of open files of a test too much.
#[cfg(target_os = "linux")]
#[test]
fn connections_above_the_limit_wait() {
    let server = Server::start(&[]);
    let start = Instant::now();
    let idle: Vec<_> = (0..250).map(|_| server.connect(b"GET / HT")).collect();
    assert_eq!(server.get("/api/model").status, 200);
    let waited = start.elapsed();
    assert!((5..15).contains(&waited.as_secs()), "{waited:?}");
    drop(idle);
}

#[cfg(unix)]
#[test]
fn a_signal_ends_all_runs_and_connections() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&["--max-images", "200", "--grace", "0", "--parallel", "1"]);
        let running = server.submit(json!({"prompt": "a parrot", "count": 200, "steps": SLOW}));
        let waiting = server.submit(json!({"prompt": "a parrot"}));
        let client = server.connect(post("/v1/images/generations", "{\"prompt\": \"a parrot\"}").as_bytes());
        // Never completes its request.
        let idle = server.connect(b"GET / HT");
        let mut events = server.listen(&running, "");
        let waits = server.listen(&waiting, "");
        events.find(|e| e.0 == "preview").unwrap();
        let start = Instant::now();
        assert!(Command::new("kill").args(["-s", signal, &server.child.id().to_string()]).status().unwrap().success());
        assert_eq!((events.last().unwrap().0.as_str(), waits.last().unwrap().0.as_str()), ("cancelled", "cancelled"));
        let mut response = String::new();
        let mut client = client;
        client.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.0 503") && response.contains("the server is stopping"), "{response}");
        let status = server.child.wait().unwrap();
        assert!(status.success() && start.elapsed() < Duration::from_secs(2), "{signal}: {status}, {:?}", start.elapsed());
        drop(idle);
    }
}

fn fails(arguments: &[&str]) -> String {
    let Output { status, stderr, stdout } = Command::new(WEB).args(arguments).output().unwrap();
    let errors = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

#[test]
fn startup_errors_are_reported() {
    let server = Server::start(&["--host", "localhost"]);
    let port = server.port.to_string();
    assert!(fails(&["--port", &port, "--host", "localhost"]).contains("in use"));
    assert!(fails(&["--port", "0", "--model", "nowhere"]).contains("nowhere"));
    assert!(fails(&["--port", "0", "--threads", "0"]).contains("threads"));
    assert!(fails(&["--port", "0", "--host", "256.0.0.1"]).contains("256.0.0.1"));
}

#[test]
fn other_addresses_cause_a_warning() {
    let mut child =
        Command::new(WEB).args(["--port", "0", "--host", "0.0.0.0"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = client::port(&line);
    let mut warning = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut warning).unwrap();
    let server = Server { child, port };
    assert!(warning.contains("no password"), "{warning}");
    // Any Host header is accepted.
    assert_eq!(server.raw(b"GET / HTTP/1.0\r\nHost: example.com\r\n\r\n").status, 200);
}
