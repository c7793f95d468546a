//! Images.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock};

use hart_core::{Error, Image, ImageFormat, PixelFormat, with_enough_stack};

use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get, share};
use crate::out::{self, Out, Struct};
use crate::status::{Failure, HART_ERR_IO, hart_status};
use crate::text::{self, Text, to_c};

/// Maximum number of images in a grid.
const MAX_GRID: usize = hart_core::MAX_IMAGES;

/// An image with 8-bit RGB pixels. It never changes.
pub struct hart_image(());

impl Handle for hart_image {
    type Value = Arc<CImage>;
    const NAME: &'static str = "hart_image";
}

/// An image with its strings as C strings, and the files that were encoded from it.
pub(crate) struct CImage {
    pub(crate) image: Image,
    png: OnceLock<Vec<u8>>,
    /// Files in other formats. They are never removed, since C holds pointers to them.
    files: Mutex<Vec<(ImageFormat, Box<[u8]>)>>,
    prompt: Option<CString>,
    settings: Option<CString>,
    model_fingerprint: Option<CString>,
}

impl CImage {
    pub(crate) fn new(image: Image) -> Arc<Self> {
        let prompt = image.provenance.as_ref().map(|p| to_c(&p.prompt));
        let settings = image.provenance.as_ref().map(|p| to_c(&p.settings));
        let generation = image.provenance.as_ref().and_then(|p| p.generation.as_ref());
        let fingerprint = generation.map(|g| g.model_fingerprint.as_str()).filter(|fingerprint| !fingerprint.is_empty());
        let model_fingerprint = fingerprint.map(to_c);
        Arc::new(Self { image, png: OnceLock::new(), files: Mutex::default(), prompt, settings, model_fingerprint })
    }
}

/// Pixels of an image, and how it was generated. Set `struct_size` to `sizeof(hart_image_view)` before the call. The
/// pointers are valid until the image is freed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_image_view {
    /// `sizeof(hart_image_view)`.
    pub struct_size: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes per pixel: 3, in the order red, green, blue.
    pub channels: u32,
    /// Bytes from the start of one row to the start of the next.
    pub stride: usize,
    /// Size of all pixels in bytes.
    pub size: usize,
    /// Pixels, row by row from the top left.
    pub pixels: *const u8,
    /// Seed of the image, or 0 if it was not generated.
    pub seed: u64,
    /// Prompt of the image, or NULL if it was not generated.
    pub prompt: *const c_char,
    /// The other settings in one line, or NULL if it was not generated.
    pub settings: *const c_char,
    /// Fingerprint of the model that generated the image, as `hart_model_info` has it, or NULL if it is not known. Compare
    /// the two before `hart_request_again`: another model generates another image.
    pub model_fingerprint: *const c_char,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_image_view {}

/// Bytes of a pixel, 8 bits for each channel, in the order of memory. Later versions may add values.
pub type hart_pixel_format = i32;

/// Red, green, blue: the format of `hart_image_view` and `hart_image_new`.
pub const HART_PIXEL_RGB: hart_pixel_format = 0;
/// Blue, green, red.
pub const HART_PIXEL_BGR: hart_pixel_format = 1;
/// Red, green, blue, alpha. The colours are not multiplied by alpha.
pub const HART_PIXEL_RGBA: hart_pixel_format = 2;
/// Blue, green, red, alpha. The colours are not multiplied by alpha.
pub const HART_PIXEL_BGRA: hart_pixel_format = 3;
/// Grey, one byte: the luma of ITU-R BT.601, as in JPEG.
pub const HART_PIXEL_GREY: hart_pixel_format = 4;

fn pixel_format(format: hart_pixel_format) -> Result<PixelFormat, Failure> {
    match format {
        HART_PIXEL_RGB => Ok(PixelFormat::Rgb),
        HART_PIXEL_BGR => Ok(PixelFormat::Bgr),
        HART_PIXEL_RGBA => Ok(PixelFormat::Rgba),
        HART_PIXEL_BGRA => Ok(PixelFormat::Bgra),
        HART_PIXEL_GREY => Ok(PixelFormat::Grey),
        _ => Err(Failure::argument(format!("`format` is {format}, expected HART_PIXEL_RGB (0) to HART_PIXEL_GREY (4)"))),
    }
}

/// Turns an error about pixels into one about an argument.
fn argument(error: Error) -> Failure {
    Failure::argument(error.to_string())
}

/// Creates an image from pixels, which are copied: `height` rows from the top, each of `width` pixels with 3 bytes for
/// red, green and blue. `stride` is the distance between the starts of two rows in bytes; 0 stands for 3 * width. Free
/// the image with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if a side is 0 or the stride is too small.
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
        let (width, height) = (width as usize, height as usize);
        let size = PixelFormat::Rgb.size(width, height, stride).map_err(argument)?;
        let bytes = text::bytes(pixels, size, "pixels")?;
        image.write(CImage::new(Image::from_pixels(PixelFormat::Rgb, width, height, stride, bytes).map_err(argument)?));
        Ok(())
    })
}

/// Creates an image from pixels in any format, which are copied: `height` rows from the top, each of `width` pixels.
/// `stride` is the distance between the starts of two rows in bytes; 0 stands for rows without padding. `size` is the
/// number of bytes at `pixels`. With a stride of 0 it must match exactly, so that another format is noticed; otherwise the
/// last row must end within it. Transparent pixels are composited over white, as `hart_image_open` does. Free the image
/// with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if the format is unknown, a side is 0, or the stride or the size is
/// wrong.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_new_from_pixels(
    format: hart_pixel_format,
    width: u32,
    height: u32,
    stride: usize,
    pixels: *const u8,
    size: usize,
    image: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let (format, bytes) = (pixel_format(format)?, text::bytes(pixels, size, "pixels")?);
        let created = Image::from_pixels(format, width as usize, height as usize, stride, bytes).map_err(argument)?;
        image.write(CImage::new(created));
        Ok(())
    })
}

/// Writes the pixels of an image in any format to a buffer of `size` bytes. `stride` and `size` are like those of
/// `hart_image_new_from_pixels`; a `stride` that is not 0 leaves the bytes between the rows unchanged. Alpha is 255, since
/// transparent pixels have been composited over white; `hart_image_transparency` returns where they were. Returns
/// `HART_ERR_ARGUMENT` if the format is unknown, or the stride or the size is wrong.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_copy_pixels(
    image: *const hart_image,
    format: hart_pixel_format,
    stride: usize,
    buffer: *mut u8,
    size: usize,
) -> hart_status {
    guard(|| {
        let (image, format) = (get(image, "image")?, pixel_format(format)?);
        image.image.copy_pixels(format, stride, out::bytes(buffer, size, "buffer")?).map_err(argument)
    })
}

/// Reads a PNG, JPEG or WebP file of any colour type, whatever its name. Turns the image upright according to its EXIF
/// orientation and composites transparent pixels over white. In a mask, transparent pixels count as black. Also reads
/// prompt, seed and settings from a file that hart wrote. Free the image with `hart_image_free`. Returns `HART_ERR_IO` if
/// the file can't be read and `HART_ERR_IMAGE` if it is malformed or truncated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open(path: *const c_char, image: *mut *mut hart_image) -> hart_status {
    open(Text::Terminated(path), image)
}

/// Like `hart_image_open`, for a path of `path_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open_n(path: *const c_char, path_size: usize, image: *mut *mut hart_image) -> hart_status {
    open(Text::Sized(path, path_size), image)
}

unsafe fn open(path: Text, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let path = Path::new(path.get("path")?);
        image.write(CImage::new(with_enough_stack(|| Image::open(path))??));
        Ok(())
    })
}

/// Reads an image file of `size` bytes in memory, like `hart_image_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open_memory(data: *const u8, size: usize, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let bytes = text::bytes(data, size, "data")?;
        image.write(CImage::new(with_enough_stack(|| Image::decode("the image in memory", bytes))??));
        Ok(())
    })
}

/// Creates another handle of the same image, which is freed separately. Pointers into the image are valid until the
/// last handle is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_share(image: *const hart_image, shared: *mut *mut hart_image) -> hart_status {
    share(image, "image", shared)
}

/// Frees the image. Does nothing if `image` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_free(image: *mut hart_image) {
    free(image);
}

/// Writes the pixels of the image and how it was generated to `view`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_describe(image: *const hart_image, view: *mut hart_image_view) -> hart_status {
    guard(|| {
        let CImage { image, prompt, settings, model_fingerprint, .. } = &**get(image, "image")?;
        let pixels = image.pixels();
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
            prompt: text(prompt),
            settings: text(settings),
            model_fingerprint: text(model_fingerprint),
        };
        out::fill(view, value, "view")
    })
}

/// Format of an image file. Later versions may add formats.
pub type hart_image_format = i32;

/// PNG, without loss.
pub const HART_FORMAT_PNG: hart_image_format = 0;
/// JPEG, with loss.
pub const HART_FORMAT_JPEG: hart_image_format = 1;
/// WebP, without loss.
pub const HART_FORMAT_WEBP: hart_image_format = 2;

/// Returns a format of hart-core. A quality of 0 stands for the default.
fn format_of(format: hart_image_format, quality: u32) -> Result<ImageFormat, Failure> {
    match (format, quality) {
        (HART_FORMAT_PNG, _) => Ok(ImageFormat::Png),
        (HART_FORMAT_WEBP, _) => Ok(ImageFormat::WebP),
        (HART_FORMAT_JPEG, 0) => Ok(ImageFormat::JPEG),
        (HART_FORMAT_JPEG, 1..=100) => Ok(ImageFormat::Jpeg { quality: quality as u8 }),
        (HART_FORMAT_JPEG, _) => Err(Failure::argument(format!("`quality` is {quality}, expected 0 to 100"))),
        _ => {
            Err(Failure::argument(format!("`format` is {format}, expected HART_FORMAT_PNG, HART_FORMAT_JPEG or HART_FORMAT_WEBP")))
        }
    }
}

/// Writes an image file in the format that its ending stands for, in upper or lower case: `.png`, `.jpg` or `.jpeg` with a
/// quality of 90, or `.webp` without loss. The file is marked with prompt, seed and settings, and as generated by AI, unless
/// `hart_request_set_marks` has left a mark out. The file is written completely or not at all. One that exists keeps its mode and, if possible,
/// its owner; a symbolic link is followed. Returns `HART_ERR_REQUEST` if the ending is another one or missing, or a side is
/// too long for the format, and `HART_ERR_IO` if the file can't be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_save(image: *const hart_image, path: *const c_char) -> hart_status {
    save(image, Text::Terminated(path))
}

/// Like `hart_image_save`, for a path of `path_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_save_n(image: *const hart_image, path: *const c_char, path_size: usize) -> hart_status {
    save(image, Text::Sized(path, path_size))
}

unsafe fn save(image: *const hart_image, path: Text) -> hart_status {
    guard(|| {
        let (image, path) = (&get(image, "image")?.image, Path::new(path.get("path")?));
        Ok(with_enough_stack(|| image.save(path))??)
    })
}

/// Returns the bytes of the image as a file. `quality` is that of JPEG files, 1 to 100, or 0 for 90; it has no effect on
/// other formats. The bytes are valid until the image is freed, and the same call returns the same bytes. Returns
/// `HART_ERR_ARGUMENT` if format or quality are unknown, and `HART_ERR_REQUEST` if a side is too long: 65,535 pixels in
/// JPEG, 16,384 in WebP.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_encode(
    image: *const hart_image,
    format: hart_image_format,
    quality: u32,
    data: *mut *const u8,
    size: *mut usize,
) -> hart_status {
    guard(|| {
        out::set(data, ptr::null(), "data")?;
        out::set(size, 0, "size")?;
        let (CImage { image, files, .. }, format) = (&**get(image, "image")?, format_of(format, quality)?);
        let mut files = lock(files);
        let index = match files.iter().position(|(encoded, _)| *encoded == format) {
            Some(index) => index,
            None => {
                let file = with_enough_stack(|| image.encode(format))??;
                files.push((format, file.into_boxed_slice()));
                files.len() - 1
            }
        };
        out::set(data, files[index].1.as_ptr(), "data")?;
        out::set(size, files[index].1.len(), "size")
    })
}

/// Returns the bytes of the PNG file that `hart_image_save` writes. They are valid until the image is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_png(image: *const hart_image, data: *mut *const u8, size: *mut usize) -> hart_status {
    guard(|| {
        out::set(data, ptr::null(), "data")?;
        out::set(size, 0, "size")?;
        let CImage { image, png, .. } = &**get(image, "image")?;
        let file = match png.get() {
            Some(file) => file,
            None => {
                let file = with_enough_stack(|| image.to_png())?.map_err(|e| Failure::new(HART_ERR_IO, format!("PNG: {e}")))?;
                png.get_or_init(|| file)
            }
        };
        out::set(data, file.as_ptr(), "data")?;
        out::set(size, file.len(), "size")
    })
}

/// Returns an image of the same size that is white where `image` is transparent and black where it is opaque. Pass it to
/// `hart_request_set_inpaint` if the transparent part is to be regenerated, as in OpenAI's image API. Only images of PNG
/// and WebP files have transparent pixels. Free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_transparency(image: *const hart_image, mask: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let mask = Out::<hart_image>::new(mask, "mask")?;
        mask.write(CImage::new(get(image, "image")?.image.transparency()));
        Ok(())
    })
}

/// Arranges `count` images of equal size in a grid with `columns` columns. Free the grid with `hart_image_free`.
/// Returns `HART_ERR_REQUEST` if there are no images, their sizes differ, or `columns` is 0.
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
        let images: Result<Vec<&Image>, Failure> = (0..count).map(|i| Ok(&get(images.add(i).read(), "images[i]")?.image)).collect();
        grid.write(CImage::new(Image::grid(&images?, columns)?));
        Ok(())
    })
}
