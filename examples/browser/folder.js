// The files of a model that the user picks or drops.

/** Maximum number of files that are looked at. A larger folder is no model. */
const MAX_FILES = 10000;
/** Names of a text model's folder, in the model's folder or next to it. */
const TEXT_FOLDERS = ["text", "Qwen2-VL-1.5B-Instruct"];
const PARTS = "llm, tokenizer and text";

/** Lists the files below a `FileSystemDirectoryHandle`. */
export async function filesOfHandle(folder) {
  const files = [];
  const walk = async (handle, path) => {
    for await (const inner of handle.values()) {
      const at = `${path}/${inner.name}`;
      if (inner.kind === "directory") await walk(inner, at);
      else add(files, await inner.getFile(), at);
    }
  };
  await walk(folder, folder.name);
  return files;
}

/** Lists the files and folders of a drop. Call it in the event's handler, because the browser empties the list after it. */
export async function filesOfDrop(transfer) {
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) return add(files, await new Promise((resolve, reject) => entry.file(resolve, reject)), entry.fullPath.slice(1));
    const reader = entry.createReader();
    for (;;) {
      // Every call returns a part of the folder.
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (part.length === 0) return;
      for (const inner of part) await walk(inner);
    }
  };
  for (const entry of [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean)) await walk(entry);
  return files;
}

/** Adds a file with its path in the property in which files of an input element have it. */
function add(files, file, path) {
  if (files.length >= MAX_FILES) throw new Error(`There are more than ${MAX_FILES} files here. Choose the folder of one model.`);
  files.push(Object.defineProperty(file, "webkitRelativePath", { value: path }));
}

/**
 * Returns the name of the model among files, for display.
 *
 * Throws an error if there is no model or more than one, or if the text model is missing.
 */
export function findModel(files) {
  if (files.length === 0) throw new Error(`The folder is empty. Choose a model's folder, which contains ${PARTS}.`);
  const paths = files.map((file) => file.webkitRelativePath || file.name);
  const roots = paths.filter((path) => /(^|\/)llm\/config\.json$/.test(path)).map((path) => path.slice(0, -"llm/config.json".length));
  if (roots.length === 0) throw new Error(explain(paths));
  if (paths.every((path) => path.startsWith("llm/"))) throw new Error("This folder is a part of a model. Choose the folder above it.");
  const depth = (path) => path.split("/").length;
  const least = Math.min(...roots.map(depth));
  const [root, ...others] = roots.filter((path) => depth(path) === least);
  const name = (path) => path.split("/").filter(Boolean).pop() ?? "your model";
  if (others.length > 0) throw new Error(`There are several models here: ${[root, ...others].map(name).join(", ")}. Choose one of these folders.`);
  const parent = root.replace(/[^/]*\/$/, "");
  const places = TEXT_FOLDERS.flatMap((folder) => [`${root}${folder}/config.json`, `${parent}${folder}/config.json`]);
  if (!places.some((place) => paths.includes(place))) {
    throw new Error(`The text model is missing. Put its folder ${TEXT_FOLDERS.join(" or ")} into the model's folder, or drop both folders together.`);
  }
  return name(root);
}

/** Explains why files are not a model. */
function explain(paths) {
  if (paths.every((path) => !path.includes("/"))) {
    return `These files have no folders. Choose or drop the model's folder instead, which contains ${PARTS}.`;
  }
  return `This is not a model's folder: there is no llm/config.json. Choose the folder that contains ${PARTS}.`;
}
