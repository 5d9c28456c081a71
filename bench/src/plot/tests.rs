use std::env;
use std::process;

use super::*;

/// As nccl-tests write it.
const REPORT: &str = r#"{"version": 3, "results": [
    {"size": 1024, "type": "float", "redop": "sum", "root": "    -1",
     "out_of_place": {"bus_bw": 0.5}, "in_place": {"bus_bw": 0.6}},
    {"size": 2048, "type": "float", "redop": "sum", "root": "    -1",
     "out_of_place": {"bus_bw": 0.7}, "in_place": {"bus_bw": 0.8}},
    {"size": 1024, "type": "half", "redop": "none", "root": "     3",
     "out_of_place": null, "in_place": {"bus_bw": 0.9}}]}"#;

#[test]
fn a_report_has_a_line_for_each_type_and_operation() {
    let line = |label: &str, points: &[(f64, f64)]| Series {
        label: label.into(),
        points: points.to_vec(),
    };
    assert_eq!(
        read(REPORT, "mine").unwrap(),
        [
            line("mine: float sum, out of place", &[(1024.0, 0.5), (2048.0, 0.7)]),
            line("mine: half root 3, in place", &[(1024.0, 0.9)]),
        ]
    );
    for text in ["", "{}", "[]", r#"{"results": []}"#, r#"{"results": [{"size": 1}]}"#] {
        assert!(read(text, "mine").is_err(), "{text}");
    }
}

/// Names of tags that are opened and closed in order, and all text between them.
fn well_formed(svg: &str) -> Vec<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut texts = Vec::new();
    for piece in svg.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.trim()), "{svg}");
        } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
            open.push(tag.split_whitespace().next().unwrap());
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if !text.trim().is_empty() {
            texts.push(text.trim().to_string());
        }
    }
    assert!(open.is_empty(), "{open:?}");
    texts
}

#[test]
fn a_picture_is_well_formed_and_names_every_line() {
    let series: Vec<Series> = (0..10)
        .map(|line| Series {
            label: format!("line <{line}> & \"more\""),
            points: vec![
                (0.0, 1.0),
                (8.0, 0.001 * f64::from(line + 1)),
                (65_536.0, 0.0),
                (1e6, 2.0),
            ],
        })
        .collect();
    let svg = drawing::draw("a title", &series, drawing::BANDWIDTHS).unwrap().unwrap();
    let texts = well_formed(&svg);
    assert!(texts.contains(&"a title".to_string()), "{texts:?}");
    for line in 0..10 {
        let begin = format!("line &lt;{line}&gt; &amp; ");
        assert!(texts.iter().any(|text| text.starts_with(&begin)), "{texts:?}");
    }
    assert!(texts.iter().any(|text| text == "1 MB/s"), "{texts:?}");
    assert!(svg.matches("<polyline").count() >= 10, "{svg}");
    // Zeros have no logarithm: two points are left of four, and each line has one in the legend.
    assert_eq!(svg.matches("<circle").count(), 10 * 3);
    // Nothing smaller than 12 pixels.
    for size in svg.split("font-size=\"").skip(1) {
        let number: String = size.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        assert!(number.parse::<f64>().unwrap() >= 12.0, "{number}");
    }
}

#[test]
fn nothing_is_drawn_of_no_bandwidth() {
    let series = [Series { label: "one rank".into(), points: vec![(8.0, 0.0)] }];
    assert_eq!(drawing::draw("a title", &series, drawing::BANDWIDTHS), Ok(None));
    let lines = Lines { title: "a title".into(), series: series.to_vec() };
    let error = lines.write(Path::new("/no/such/out.svg")).unwrap_err();
    assert!(matches!(&error, Error::NothingToDraw { .. }), "{error}");
    assert_eq!(error.help().unwrap(), "give a larger -e");
}

#[test]
fn reports_are_compared_in_one_file() {
    let folder = env::temp_dir().join(format!("allfold-plot-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (report, plot) = (folder.join("mine.json"), folder.join("out.svg"));
    fs::write(&report, REPORT).unwrap();
    let options =
        |report: &Path| PlotOptions { reports: vec![report.into(); 2], plot: plot.clone() };
    let mut out = Vec::new();
    run(&options(&report), &mut out).unwrap();
    assert!(String::from_utf8(out).unwrap().ends_with("out.svg\n"));
    let texts = well_formed(&fs::read_to_string(&plot).unwrap());
    assert!(texts.contains(&"mine: half root 3, in place".to_string()), "{texts:?}");
    let error = run(&options(&folder.join("missing.json")), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().ends_with("missing.json: no such file or directory"), "{error}");
    assert_eq!(error.exit_code(), 2);

    // As of one rank, or of a barrier.
    let idle = folder.join("idle.json");
    fs::write(&idle, r#"{"results": [{"size": 8, "out_of_place": {"bus_bw": 0.0}}]}"#).unwrap();
    fs::remove_file(&plot).unwrap();
    let both = PlotOptions { reports: vec![report, idle], plot: plot.clone() };
    let error = run(&both, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("idle.json: no bus bandwidth to draw: all rows"), "{error}");
    assert_eq!((error.exit_code(), plot.exists()), (2, false));
    assert!(error.help().unwrap().starts_with("give reports of two ranks or more"));
    fs::remove_dir_all(&folder).unwrap();
}
