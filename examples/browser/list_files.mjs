// Prints the list of a model's files for a server: node list_files.mjs FOLDER > FOLDER/files.json
//
// With it, Hart.open of the folder's URL asks for no file that does not exist, and knows the size of all files before the first.

import { listFiles } from "./files.js";

const [folder] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node list_files.mjs FOLDER > FOLDER/files.json");
  process.exit(2);
}
console.log(JSON.stringify(await listFiles(folder), null, 2));
