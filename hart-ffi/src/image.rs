//! Pictures.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, OnceLock};

use hart_core::Image;

use crate::guard::guard;
use crate::handle::{Handle, free, get};
use crate::out::{self, Out, Struct};
use crate::status::{Failure, HART_ERR_IO, hart_status};
use crate::text;

/// Most pictures of a grid.
const MAX_GRID: usize = hart_core::MAX_IMAGES;

/// A picture of 8-bit RGB. It never changes.
pub struct hart_image(());

impl Handle for hart_image {
    type Value = Picture;
    const NAME: &'static str = "hart_image";
}

pub(crate) struct Picture {
    pub(crate) image: Arc<Image>,
    png: OnceLock<Vec<u8>>,
    prompt: Option<CString>,
    settings: Option<CString>,
}

impl Picture {
    pub(crate) fn new(image: impl Into<Arc<Image>>) -> Self {
        let image = image.into();
        let text = |text: &str| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let prompt = image.provenance.as_ref().map(|p| text(&p.prompt));
        let settings = image.provenance.as_ref().map(|p| text(&p.settings));
        Self { image, png: OnceLock::new(), prompt, settings }
    }
}

/// A picture's pixels, and how it was made. Set `struct_size` to `sizeof(hart_image_view)` before the call. Pointers are valid until the
/// image is freed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_image_view {
    /// `sizeof(hart_image_view)`.
    pub struct_size: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes of a pixel: 3, for red, green, blue.
    pub channels: u32,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Bytes in all.
    pub size: usize,
    /// The first row's first pixel, at the top left.
    pub pixels: *const u8,
    /// The seed that it was made with, if it was.
    pub seed: u64,
    /// The prompt that it was made from, or NULL.
    pub prompt: *const c_char,
    /// The other settings in one line, or NULL.
    pub settings: *const c_char,
}

// SAFETY: repr(C), struct_size first, zeros are numbers and NULL pointers.
unsafe impl Struct for hart_image_view {}

/// A picture from pixels of your own, which are copied: `height` rows of `width` pixels of 3 bytes each, red, green, blue, from the top left;
/// `stride` is the bytes from one row to the next, 0 for 3 * width. Free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_new(
    width: u32,
    height: u32,
    stride: usize,
    pixels: *const u8,
    image: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let row = 3 * width as usize;
        let stride = if stride == 0 { row } else { stride };
        let size = (height as usize).checked_sub(1).and_then(|rows| stride.checked_mul(rows)?.checked_add(row));
        let size = size.filter(|_| width > 0 && stride >= row).ok_or_else(|| {
            let problem = format!("{width} x {height} pixels with a stride of {stride} bytes");
            Failure::argument(format!("{problem}: expected at least one pixel, and a stride of 0 or at least 3 * width"))
        })?;
        let bytes = text::bytes(pixels, size, "pixels")?;
        let rows = bytes.chunks(stride).flat_map(|line| &line[..row]).copied().collect();
        image.give(Picture::new(Image::from_rgb(width as usize, height as usize, rows)?));
        Ok(())
    })
}

/// Reads a PNG file of any colour type; transparency is laid over white. Prompt, seed and settings are read too, if hart wrote them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open(path: *const c_char, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        image.give(Picture::new(Image::open_png(Path::new(text::get(path, "path")?))?));
        Ok(())
    })
}

/// Reads a PNG file of `size` bytes that is in memory, as `hart_image_open` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open_memory(data: *const u8, size: usize, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        image.give(Picture::new(Image::from_png("the picture in memory", text::bytes(data, size, "data")?)?));
        Ok(())
    })
}

/// Frees the image; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_free(image: *mut hart_image) {
    free(image);
}

/// The image's pixels and how it was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_describe(image: *const hart_image, view: *mut hart_image_view) -> hart_status {
    guard(|| {
        let picture = get(image, "image")?;
        let (image, pixels) = (&picture.image, picture.image.pixels());
        let text = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let value = hart_image_view {
            struct_size: 0,
            width: image.width() as u32,
            height: image.height() as u32,
            channels: 3,
            stride: 3 * image.width(),
            size: pixels.len(),
            pixels: pixels.as_ptr(),
            seed: image.provenance.as_ref().map_or(0, |p| p.seed),
            prompt: text(&picture.prompt),
            settings: text(&picture.settings),
        };
        out::fill(view, value, "view")
    })
}

/// Writes a PNG file, whole or not at all; prompt, seed and settings stand in its text chunks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_save(image: *const hart_image, path: *const c_char) -> hart_status {
    guard(|| Ok(get(image, "image")?.image.save_png(Path::new(text::get(path, "path")?))?))
}

/// The PNG file's bytes, as `hart_image_save` writes them; valid until the image is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_png(image: *const hart_image, data: *mut *const u8, size: *mut usize) -> hart_status {
    guard(|| {
        out::set(data, ptr::null(), "data")?;
        out::set(size, 0, "size")?;
        let picture = get(image, "image")?;
        let made = match picture.png.get() {
            Some(png) => png,
            None => {
                let png = picture.image.to_png().map_err(|e| Failure::new(HART_ERR_IO, format!("PNG: {e}")))?;
                picture.png.get_or_init(|| png)
            }
        };
        out::set(data, made.as_ptr(), "data")?;
        out::set(size, made.len(), "size")
    })
}

/// `count` images of one size side by side, in rows of `columns`. Free the grid with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_grid(
    images: *const *const hart_image,
    count: usize,
    columns: usize,
    grid: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let grid = Out::<hart_image>::new(grid, "grid")?;
        if images.is_null() {
            return Err(Failure::null("images"));
        }
        if count > MAX_GRID {
            return Err(Failure::argument(format!("`count` is {count}, expected at most {MAX_GRID}")));
        }
        let pictures: Result<Vec<&Image>, Failure> =
            (0..count).map(|i| Ok(&*get(images.add(i).read(), "images[i]")?.image)).collect();
        grid.give(Picture::new(Image::grid(&pictures?, columns)?));
        Ok(())
    })
}
