//! The report, as headless Chromium shows it: every plot has something in it, in light and in dark.

use crate::compare_in;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Command,
};

/// The browser, which tools/test.sh installs.
fn chromium() -> &'static str {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    names
        .into_iter()
        .find(there)
        .expect("no Chromium here: run tools/test.sh, which installs it")
}

const WIDTH: u32 = 1000;

/// Runs the browser on a page; what it prints.
fn browse(folder: &Path, page: &Path, height: u32, more: &[String]) -> String {
    let output = Command::new(chromium())
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .arg("--force-device-scale-factor=1")
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("--window-size={WIDTH},{height}"))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("Chromium starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Boxes of all plots (left, top, width, height), and the page's height.
fn boxes(folder: &Path, page: &Path) -> (Vec<[u32; 4]>, u32) {
    let script = "<pre id=boxes></pre><script>\
        const of = s => { const b = s.getBoundingClientRect(); return [b.x, b.y, b.width, b.height].map(Math.floor); };\
        document.getElementById('boxes').textContent = JSON.stringify([\
            [...document.querySelectorAll('svg')].map(of), document.querySelector('main').scrollHeight]);\
        </script>";
    let copy = folder.join("boxes.html");
    let html = std::fs::read_to_string(page).expect("the report");
    assert!(html.ends_with("</html>"));
    std::fs::write(&copy, html + script).expect("a copy");
    let dom = browse(folder, &copy, 1000, &["--dump-dom".into()]);
    let text = dom
        .split("<pre id=\"boxes\">")
        .nth(1)
        .and_then(|s| s.split('<').next());
    serde_json::from_str(text.expect("boxes")).expect("JSON")
}

/// A picture, `[height, width, 3]`.
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn take(folder: &Path, page: &Path, height: u32, more: &[&str]) -> Picture {
        let path: PathBuf = folder.join("shot.png");
        let mut flags = vec![format!("--screenshot={}", path.display())];
        flags.extend(more.iter().map(|flag| flag.to_string()));
        browse(folder, page, height, &flags);
        let mut decoder = png::Decoder::new(std::io::BufReader::new(
            std::fs::File::open(&path).expect("a screenshot"),
        ));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().expect("a PNG");
        let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut bytes).expect("pixels");
        let channels = info.color_type.samples();
        assert!(channels >= 3, "{:?}", info.color_type);
        Picture {
            width: info.width as usize,
            pixels: bytes[..info.buffer_size()]
                .chunks_exact(channels)
                .map(|p| [p[0], p[1], p[2]])
                .collect(),
        }
    }

    fn background(&self) -> [u8; 3] {
        self.pixels[0]
    }

    /// Pixels of a box, inside the axes, that are neither background nor grey: what is plotted.
    fn coloured(&self, [left, top, width, height]: [u32; 4]) -> usize {
        let inside =
            |share: f64, of: u32, from: u32| from as usize + (share * f64::from(of)) as usize;
        let rows = inside(0.02, height, top)..inside(0.84, height, top);
        let is_colour = |p: &[u8; 3]| {
            let (min, max) = (p.iter().min(), p.iter().max());
            max.zip(min).is_some_and(|(max, min)| max - min > 60)
        };
        rows.map(|y| {
            let row = y * self.width + inside(0.085, width, left)
                ..y * self.width + inside(0.98, width, left);
            self.pixels[row].iter().filter(|p| is_colour(p)).count()
        })
        .sum()
    }
}

#[test]
fn chromium_shows_every_plot() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = folder.path().join("report.html");
    let html = page.to_str().expect("UTF-8");
    let compared = compare_in(
        folder.path(),
        &[
            "cpu",
            "reference",
            "--trace",
            "-p",
            "16",
            "-n",
            "8",
            "-r",
            "1",
            "--html",
            html,
        ],
    );
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    let (boxes, height) = boxes(folder.path(), &page);
    assert_eq!(
        boxes.len(),
        7,
        "KL, Δ logprob, trace, decode, prefill, waits, memory"
    );
    let height = height + 50;
    let light = Picture::take(folder.path(), &page, height, &[]);
    assert_eq!(light.background(), [255; 3]);
    for (i, &plot) in boxes.iter().enumerate() {
        assert!(plot[2] > 600 && plot[3] > 200, "{plot:?}");
        let coloured = light.coloured(plot);
        assert!(
            coloured > 100,
            "plot {i} at {plot:?}: {coloured} coloured pixels"
        );
    }
    let dark = Picture::take(
        folder.path(),
        &page,
        height,
        &["--blink-settings=preferredColorScheme=0"],
    );
    assert!(
        dark.background().iter().all(|&c| c < 64),
        "{:?}",
        dark.background()
    );
    assert!(boxes.iter().all(|&plot| dark.coloured(plot) > 100));
    // Two schemes, two palettes.
    let colours = |p: &Picture| p.pixels.iter().copied().collect::<HashSet<_>>();
    assert!(colours(&light) != colours(&dark));
    // Seen as a test of the test: a plot without its data has no colour in it.
    let empty = folder.path().join("empty.html");
    let html = std::fs::read_to_string(&page).expect("the report");
    let html = html.replace("currentColor", "none");
    std::fs::write(&empty, html).expect("a copy");
    let empty = Picture::take(folder.path(), &empty, height, &[]);
    assert!(boxes.iter().all(|&plot| empty.coloured(plot) == 0));
}
