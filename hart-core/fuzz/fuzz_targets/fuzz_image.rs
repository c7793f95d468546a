//! Promise: whatever an image file holds, decoding it gives an image or an error. It never panics. An image can be encoded in every
//! format and is read back with its size.
#![cfg_attr(fuzzing, no_main)]

use std::alloc::System;

use cap::Cap;
use hart_core::{Image, ImageFormat};
use hart_fuzz::fuzz_target;

/// An image of the largest size, in the forms that a decoder holds at once.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 2 << 30);

/// Number of pixels of images that are encoded again.
const SMALL: usize = 1 << 14;

fuzz_target!(|input: &[u8]| {
    match Image::decode("input", input) {
        Ok(image) => {
            assert_eq!(image.pixels().len(), 3 * image.width() * image.height());
            if image.width() * image.height() <= SMALL {
                encode_all(&image);
            }
        }
        Err(e) => assert!(e.to_string().starts_with("input: ")),
    }
});

fn encode_all(image: &Image) {
    for format in [ImageFormat::Png, ImageFormat::JPEG, ImageFormat::WebP] {
        let file = image.encode(format).expect("sides are short");
        let again = Image::decode("again", &file).expect("hart reads what it writes");
        assert_eq!((again.width(), again.height()), (image.width(), image.height()));
        assert!(again.pixels() == image.pixels() || format == ImageFormat::JPEG);
    }
}
