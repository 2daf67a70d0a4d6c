// Runs dlib's recogniser by face-api, and the face mesh by the TensorFlow.js inside it; see make_small_faces.py.
//   node small_faces.mjs <face-api> <human-models> <folder>
// The folder holds chip.bin and mesh.bin, float32 in rows, columns and channels; the results come beside them.
import fs from 'fs';
import path from 'path';
import util from 'util';

const [faceApi, human, folder] = process.argv.slice(2);
// The bundle is made for browsers: it must not see that this is node.
Object.defineProperty(process, 'versions', { value: {} });
const faceapi = await import(path.resolve(faceApi, 'dist/face-api.esm.js'));
const tf = faceapi.tf;
tf.env().setPlatform('plain', {
  now: () => performance.now(),
  encode: (text) => new TextEncoder().encode(text),
  decode: (content) => new TextDecoder().decode(content),
  isTypedArray: (value) => util.types.isTypedArray(value),
});
await tf.setBackend('cpu');
await tf.ready();

const bytes = (file) => { const b = fs.readFileSync(file); return b.buffer.slice(b.byteOffset, b.byteOffset + b.length); };
const input = (name, side) => tf.tensor(new Float32Array(bytes(path.join(folder, `${name}.bin`))), [1, side, side, 3]);
const write = (name, tensor) => fs.writeFileSync(path.join(folder, `${name}.out`), Buffer.from(tensor.dataSync().buffer));

const stem = path.join(faceApi, 'model/face_recognition_model');
const manifest = JSON.parse(fs.readFileSync(`${stem}-weights_manifest.json`));
const weights = tf.io.decodeWeights(bytes(`${stem}.bin`), manifest[0].weights);
const dlib = new faceapi.FaceRecognitionNet();
dlib.loadFromWeightMap(weights);
write('chip', dlib.forwardInput(new faceapi.NetInput([tf.squeeze(input('chip', 150), 0)])));

const model = JSON.parse(fs.readFileSync(path.join(human, 'models/facemesh.json')));
const graph = await tf.loadGraphModel(tf.io.fromMemory({
  modelTopology: model.modelTopology,
  weightSpecs: model.weightsManifest[0].weights,
  weightData: bytes(path.join(human, 'models/facemesh.bin')),
}));
const [points, score] = graph.execute(input('mesh', 192), ['Identity_2:0', 'Identity_1:0']);
write('mesh', points);
write('presence', score);
