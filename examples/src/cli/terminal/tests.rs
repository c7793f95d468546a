use super::*;

/// An image with a red upper and a green lower half.
fn image(side: usize) -> Image {
    let colour = |index: usize| if index < side * side / 2 { [255, 0, 0] } else { [0, 255, 0] };
    Image::from_rgb(side, side, (0..side * side).flat_map(colour).collect()).unwrap()
}

#[test]
fn terminals_are_detected_from_the_environment() {
    let detect = |pairs: &[(&str, &str)]| Draw::detect(|n| pairs.iter().find(|(name, _)| *name == n).map(|(_, v)| v.to_string()));
    assert_eq!(detect(&[]), Draw::Blocks);
    assert_eq!(detect(&[("TERM", "xterm-256color")]), Draw::Blocks);
    assert_eq!(detect(&[("TERM", "xterm-kitty")]), Draw::Kitty);
    assert_eq!(detect(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Draw::Iterm);
    assert_eq!(detect(&[("TERM", "xterm-256color"), ("LC_TERMINAL", "iTerm2")]), Draw::Iterm);
    assert_eq!(detect(&[("TERM", "foot")]), Draw::Sixel);
    assert_eq!(detect(&[("TERM", "tmux-256color"), ("TERM_PROGRAM", "ghostty")]), Draw::Blocks);
    assert_eq!(detect(&[("TERM", "xterm-kitty"), ("TMUX", "/run/tmux")]), Draw::Blocks);
}

#[test]
fn half_blocks_show_two_pixels_per_character() {
    let two = rgb(&image(2));
    let cell = "\x1b[38;2;255;0;0;48;2;0;255;0m▀";
    assert_eq!(blocks(&two, true), format!("{cell}{cell}\x1b[0m\r\n"));
    assert!(blocks(&two, false).starts_with("\x1b[38;5;196;48;5;46m▀"));
    // An odd last row has no lower pixel.
    assert!(blocks(&rgb(&image(1)), true).starts_with("\x1b[0;38;2;0;255;0m▀"));
    assert_eq!([ansi256([0; 3]), ansi256([255; 3]), ansi256([129; 3])], [16, 231, 244]);
}

#[test]
fn an_image_is_as_large_as_the_terminal_allows() {
    let size = |draw, terminal, side| {
        let canvas = Canvas::new(draw, terminal, true, side);
        (canvas.rows, canvas.side())
    };
    assert_eq!(size(Draw::Blocks, (24, 80), 32), (16, 32));
    assert_eq!(size(Draw::Blocks, (60, 200), 32), (48, 96));
    assert_eq!(size(Draw::Blocks, (24, 80), 1024), (22, 44));
    assert_eq!(size(Draw::Blocks, (60, 30), 1024), (15, 30));
    assert_eq!(size(Draw::Blocks, (1, 1), 32), (1, 2));
    assert_eq!(size(Draw::Kitty, (60, 200), 32), (24, 384));
    assert_eq!(size(Draw::Sixel, (20, 200), 32), (18, 216));
}

#[test]
fn the_next_image_replaces_the_one_before() {
    for draw in [Draw::Blocks, Draw::Kitty, Draw::Iterm, Draw::Sixel] {
        let mut canvas = Canvas::new(draw, (12, 80), true, 8);
        let rows = canvas.rows;
        let first = canvas.frame(&image(8), "one").unwrap();
        assert!(first.starts_with(&format!("\r\x1b[K{}\r\x1b[{rows}A\x1b7", "\n".repeat(rows))), "{first:?}");
        assert!(first.ends_with(&format!("\x1b8\x1b[{rows}B\r\x1b[Kone")), "{first:?}");
        canvas.drawn = true;
        assert!(first.ends_with("one") && canvas.line("a\nb\x1b[2J").ends_with("a b [2J"));
        assert!(canvas.frame(&image(8), "two").unwrap().starts_with(&format!("\r\x1b[{rows}A\x1b7")));
    }
}

#[test]
fn graphics_protocols_encode_the_whole_image() {
    // Noise doesn't compress, so the data needs more than one command.
    let hash = |x: u32| (x ^ x >> 13).wrapping_mul(0xc2b2_ae35) >> 24;
    let noise = (0..3 * 64 * 64u32).map(|i| hash(i.wrapping_mul(0x85eb_ca6b)) as u8).collect();
    let noise = rgb(&Image::from_rgb(64, 64, noise).unwrap());
    let decoded = |data: String| image::load_from_memory(&STANDARD.decode(data).unwrap()).unwrap().to_rgb8();
    let text = kitty(&noise, 6).unwrap();
    let commands: Vec<&str> = text.split_terminator("\x1b\\").collect();
    assert!(commands.len() > 1 && commands[0].starts_with("\x1b_Ga=T,f=100,i=1,p=1,q=2,C=1,c=12,r=6,m=1;"), "{}", commands[0]);
    assert!(
        commands[1..].iter().all(|command| command.starts_with("\x1b_Gm=")) && commands.last().unwrap().starts_with("\x1b_Gm=0;")
    );
    assert!(decoded(commands.iter().map(|command| command.split_once(';').unwrap().1).collect()) == noise);
    let text = iterm(&noise, 6).unwrap();
    assert!(text.starts_with("\x1b]1337;File=inline=1;width=12;height=6;"));
    assert!(decoded(text.trim_end_matches('\x07').split_once(':').unwrap().1.into()) == noise);
    // A sixel is a column of six pixels, so a height of 12 is kept.
    let text = sixel(&rgb(&image(12))).unwrap();
    let decoded = icy_sixel::SixelImage::decode(text.as_bytes()).unwrap();
    assert_eq!((decoded.width, decoded.height), (12, 12));
    assert!(decoded.pixels[0] > 250 && decoded.pixels[1] < 5, "{:?}", &decoded.pixels[..4]);
}
